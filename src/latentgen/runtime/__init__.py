"""Where and how networks run: device and number format."""

from latentgen.runtime.device import resolve_device, resolve_dtype

__all__ = ["resolve_device", "resolve_dtype"]
