class ToTensor:
    """Only derived from, as its like below."""


PILToTensor = ToTensor
