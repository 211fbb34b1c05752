"""A stand-in for torchvision: the few names timm imports, and nothing that works.

timm builds its networks without torchvision but imports it; the wheel a registry offers may not load beside a torch
for CPUs only. Tests put this folder on the path where the real one is absent or broken.
"""

STANDIN = True
