"""Mean, variance and gradient of many untrained nets, against what is predicted for them.

One input goes through each net and one random gradient comes back. The prediction is the average
over nets, so that it is compared with the average; beside it stands how far single nets stray.

    .venv/bin/python benchmarks/depth_profile.py
"""

from __future__ import annotations

import argparse

import numpy as np

from freenergy.normalization import get_activation, predict_depth

NETS = (("selu", "lecun_normal", 1.0), ("relu", "he_normal", 2.0), ("tanh", "lecun_normal", 1.0))


def measure(
    name: str, tau: float, width: int, depth: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Variance of the activations and of the gradient in each layer of one net."""
    f = get_activation(name)
    scale = np.float32(np.sqrt(tau / width))
    h = rng.standard_normal(width, dtype=np.float32)
    variance, slopes, weights = [h.var()], [], []
    for _ in range(depth):
        weights.append(rng.standard_normal((width, width), dtype=np.float32))
        z = scale * (weights[-1] @ h)
        slopes.append(f.derivative(z).astype(np.float32))
        h = f(z).astype(np.float32)
        variance.append(h.var())
    gradient = rng.standard_normal(width, dtype=np.float32)
    squares = [np.mean(gradient**2)]
    for weight, slope in zip(reversed(weights), reversed(slopes), strict=True):
        gradient = scale * ((gradient * slope) @ weight)
        squares.append(np.mean(gradient**2))
    return np.array(variance), np.array(squares[::-1]) / squares[0]


def main() -> None:
    """Print, for each kind of net, the largest deviation of the average over all layers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", type=int, default=1000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{options.nets} nets of {options.depth} layers of {options.width} units, one input each")
    for name, init, tau in NETS:
        rng = np.random.Generator(np.random.SFC64([options.seed, len(name)]))
        size = (name, tau, options.width, options.depth, rng)
        found = np.array([measure(*size) for _ in range(options.nets)])
        profile = predict_depth(name, init, options.depth, width=options.width)
        assert profile.signal_spread is not None
        assert profile.gradient_spread is not None
        for label, values, predicted, spread in (
            ("variance", found[:, 0], profile.variance, profile.signal_spread[-1]),
            ("gradient", found[:, 1], profile.gradient_variance, profile.gradient_spread[0]),
        ):
            ratio = values.mean(0) / predicted
            error = values.std(0) / np.sqrt(options.nets) / predicted
            worst = np.abs(ratio - 1).argmax()
            single = np.log(values).std(0).max()
            print(
                f"{name:5s} {label}: average over predicted {ratio.min():.3f} to {ratio.max():.3f} "
                f"(worst in layer {worst}, standard error {error[worst]:.3f}); "
                f"single nets stray by {single:.3f} in the logarithm, predicted {spread:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
