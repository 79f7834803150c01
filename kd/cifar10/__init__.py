"""The CIFAR-10 benchmarks."""
