"""Slipstream in the company of other libraries; each part imports its library when it is used."""

from slipstream.interop.weighted import weighted

__all__ = ["weighted"]
