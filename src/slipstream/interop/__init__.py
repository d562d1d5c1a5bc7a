"""Slipstream in the company of other libraries. Each part imports the library that it is for, and only when it is used."""

from slipstream.interop.weighted import weighted

__all__ = ["weighted"]
