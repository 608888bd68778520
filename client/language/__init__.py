"""Devices that are asked in words, with a model of somebody's as their tower."""
