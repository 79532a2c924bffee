"""The one error of this folder."""


class WeightsError(ValueError):
    """A model's files cannot be used: the message names the file, the reason and what to do."""
