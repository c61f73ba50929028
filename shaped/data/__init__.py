"""Data that is on every machine."""

from shaped.data.digits import digits as digits
