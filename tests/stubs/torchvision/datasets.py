class CIFAR10:
    """Only imported by name, as its likes below."""


CIFAR100 = MNIST = KMNIST = FashionMNIST = ImageFolder = CIFAR10
