"""Versions, readable without importing anything."""

__version__ = '0.1.0'
# Of the numbers that a run comes to: raised by whatever changes them.
NUMBERS_VERSION = 1
