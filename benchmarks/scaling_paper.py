"""The operations of an update, counted, and what they come to on a cluster.

    python benchmarks/scaling.py --paper

A product of the weights with *n* rows is 2·n·n_visible·n_hidden operations, so that an update is
counted by the rows that go through a product. Of one update of k steps, *B* rows of data and *B*
chains (``training/gradients.py``): both fields on the hidden units and both halves of the gradient,
4 B; k times hidden → visible and k − 1 times back, (2 k − 1) B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

FLOAT = 4  # bytes of a number in single precision


@dataclass(frozen=True, kw_only=True)
class Update:
    """One update of an RBM.

    Attributes
    ----------
    n_visible, n_hidden, batch, n_chains : int
        Chains, or states of the mean field; 0 stands for as many as the batch has rows.
    method : {"cd", "pcd", "emf"}
    n_steps, order : int
        Gibbs steps or sweeps, and the order of the mean field.
    centered : bool
    """

    n_visible: int = 784
    n_hidden: int = 500
    batch: int = 100
    n_chains: int = 0
    method: str = "pcd"
    n_steps: int = 1
    order: int = 2
    centered: bool = True

    @property
    def chains(self) -> int:
        return self.n_chains or self.batch

    @property
    def n_weights(self) -> int:
        return self.n_visible * self.n_hidden

    @property
    def rows_multiplied(self) -> int:
        """Rows that go through a product with the weights, or make the gradient."""
        n, m, k = self.batch, self.chains, self.n_steps
        if self.method == "emf":
            return n + 2 * self.order * k * m + (n + m) + (self.order - 1) * m
        return (2 * k - 1) * m + 2 * (n + m)

    @property
    def flops(self) -> float:
        """Operations of the matrix products."""
        return 2.0 * self.rows_multiplied * self.n_weights

    @property
    def bytes_held(self) -> float:
        """Weights, gradient, powers of the couplings, the batch, both phases and the chains."""
        rows = self.batch + self.chains
        numbers = 2 * self.n_weights + self.batch * self.n_visible
        numbers += rows * (self.n_visible + 2 * self.n_hidden)
        if self.method == "emf":
            # One array of squares, one of cubes; correlations of the cumulants in passing.
            numbers += (self.order - 1 + (self.order > 1)) * self.n_weights
            numbers += self.chains * (self.n_visible + self.n_hidden)
        else:
            numbers += self.chains * self.n_hidden
        return float(FLOAT * numbers)

    @property
    def bytes_moved(self) -> float:
        """Traffic with the memory beside the products, PCD or CD by plain SGD.

        Weights: the optimiser reads two arrays and writes one; centring reads the gradient three
        times and writes it once. Visible rows: into the buffer (2) and out for the bias (2); for
        each step random numbers and samples (4). Hidden rows: mean, centring and row weights of
        both phases (14), samples (4) of each step.
        """
        k = self.n_steps
        numbers = (4 + 4 * k) * self.batch * self.n_visible
        numbers += (14 + 4 * k) * self.batch * self.n_hidden
        return FLOAT * numbers + self.weight_bytes_moved

    @property
    def weight_bytes_moved(self) -> float:
        """The part of :attr:`bytes_moved` that grows with the weights, not with the rows."""
        return float(FLOAT * (3 + 4 * self.centered) * self.n_weights)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """GPUs of one kind, in nodes; rates as their makers give them, in units per second.

    Attributes
    ----------
    name : str
    product_rate : float
        Operations of dense products.
    memory_rate : float
        Bytes of a GPU's own memory.
    link_rate : float
        Bytes from GPU to GPU within a node, in one direction.
    network_rate : float
        Bytes that leave a node, all its adapters together, in one direction.
    n_gpus : int
    product_share, memory_share, network_share : float
        What of each rate is reached.
    gradient_bytes : float
        Of one number of the gradient on the network.
    """

    name: str = "H100 SXM, TF32"
    product_rate: float = 494.7e12
    memory_rate: float = 3.35e12
    link_rate: float = 450e9
    network_rate: float = 8 * 50e9
    n_gpus: int = 64
    product_share: float = 0.6
    memory_share: float = 0.8
    network_share: float = 0.8
    gradient_bytes: float = FLOAT

    @property
    def bus_rate(self) -> float:
        """Bytes per second of a ring through all GPUs: the network between nodes holds it up."""
        return self.network_share * self.network_rate


MODEL = Update(n_visible=100_000, n_hidden=10_000)
N_ROWS = 10**9
H100 = Cluster()
H100_BF16 = replace(H100, name="H100 SXM, bf16", product_rate=989.4e12)
H200 = replace(H100, name="H200, TF32", memory_rate=4.8e12)
ONE_ADAPTER = replace(H100, name="H100 SXM, TF32, one 100 Gb/s adapter", network_rate=12.5e9)
CLUSTERS = (H100, H100_BF16, H200, ONE_ADAPTER)
BATCHES = (64, 256, 1024, 4096, 16384)


def product_seconds(update: Update, cluster: Cluster, split: int = 1) -> float:
    """Time of the products on one GPU: operations, or reading the weights where rows are few."""
    n_products = 2 * update.n_steps + 1
    reading = FLOAT * update.n_weights * n_products / (cluster.memory_share * cluster.memory_rate)
    return max(update.flops / (cluster.product_share * cluster.product_rate), reading / split)


def other_seconds(update: Update, cluster: Cluster, split: int = 1) -> float:
    """Time of all else on one GPU, bound by its memory."""
    rows = update.bytes_moved - update.weight_bytes_moved
    moved = rows + update.weight_bytes_moved / split
    return moved / (cluster.memory_share * cluster.memory_rate)


def ring_seconds(n_bytes: float, n: int, rate: float) -> float:
    """An all-reduce among n by a ring: 2 (n − 1) / n of the bytes pass each link."""
    return 2.0 * (n - 1) / n * n_bytes / rate


def reduce_seconds(update: Update, cluster: Cluster, split: int = 1) -> float:
    """Time of the all-reduce of the gradient."""
    n_bytes = cluster.gradient_bytes * update.n_weights
    return ring_seconds(n_bytes, cluster.n_gpus // split, cluster.bus_rate)


def field_seconds(update: Update, cluster: Cluster, split: int) -> float:
    """Time in which GPUs that share the hidden units add up the fields on the visible ones."""
    n_bytes = FLOAT * update.n_steps * split * update.batch * update.n_visible
    return ring_seconds(n_bytes, split, cluster.network_share * cluster.link_rate)


def critical_batch(update: Update, cluster: Cluster) -> float:
    """Rows per GPU at which the products take as long as the all-reduce."""
    per_row = replace(update, batch=1, n_chains=1).flops
    seconds = reduce_seconds(update, cluster)
    return seconds * cluster.product_share * cluster.product_rate / per_row


@dataclass(frozen=True)
class Cost:
    """What training costs: seconds of an update and its parts, and of an epoch."""

    products: float
    others: float
    reduction: float
    update: float
    epoch: float

    @property
    def efficiency(self) -> float:
        """Share of the time in which a GPU computes: one GPU's time over all GPUs'."""
        return (self.products + self.others) / self.update


def cost(
    update: Update,
    cluster: Cluster,
    n_rows: int = N_ROWS,
    *,
    hidden_share: float = 0.0,
    updates_per_reduction: int = 1,
    split: int = 1,
) -> Cost:
    """The cost of a pass over the rows.

    ``hidden_share`` of the computation runs beside the all-reduce, which is done once in
    ``updates_per_reduction``; ``split`` GPUs share the hidden units of one model.
    """
    products, others = (f(update, cluster, split) for f in (product_seconds, other_seconds))
    reduction = reduce_seconds(update, cluster, split) / updates_per_reduction
    exposed = max(0.0, reduction - hidden_share * (products + others))
    seconds = products + others + exposed
    if split > 1:
        seconds += field_seconds(update, cluster, split)
    n_updates = n_rows / (update.batch * cluster.n_gpus)
    return Cost(products, others, reduction, seconds, seconds * n_updates)


def memory_parts(update: Update, momentum: int = 0) -> dict[str, float]:
    """Bytes of one GPU under data parallelism, by what they hold."""
    weights = float(FLOAT * update.n_weights)
    rows = FLOAT * update.batch
    return {
        "weights": weights,
        "gradient": weights,
        "gradient on its way (flat)": weights,
        "last good weights": weights,
        "state of the optimiser": momentum * weights,
        "both phases": float(2 * rows * (update.n_visible + 2 * update.n_hidden)),
        "chains": float(rows * update.n_hidden),
        "a batch ahead": float(rows * update.n_visible),
    }


def tables() -> str:
    """All that docs/scaling.md says on paper, as Markdown."""
    return "\n\n".join(
        [
            _summary(),
            "Seconds of an update by rows per GPU, 64 GPUs, PCD-1:",
            _batch_table(H100),
            _batch_table(H100_BF16),
            _batch_table(ONE_ADAPTER),
            "Rows per GPU at which the all-reduce takes as long as the products:",
            _critical_table(),
            f"What changes it, at 256 rows per GPU, {H100.name} and one adapter:",
            _remedy_table(),
            "Gigabytes of one GPU at 1024 rows:",
            _memory_table(),
            "What the data ask for, at 1024 rows per GPU:",
            _data_table(),
        ]
    )


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _summary() -> str:
    model = MODEL
    per_row = replace(model, batch=1).flops
    return (
        f"{model.n_visible:,} × {model.n_hidden:,} units, {model.n_weights:.3g} weights, "
        f"{N_ROWS:.0e} rows: {per_row:.3g} operations a row, {per_row * N_ROWS:.3g} a pass; "
        f"a gradient of {FLOAT * model.n_weights / 1e9:.3g} GB."
    )


def _batch_table(cluster: Cluster) -> str:
    rows = []
    for batch in BATCHES:
        found = cost(replace(MODEL, batch=batch), cluster)
        parts = (found.products, found.others, found.reduction, found.update)
        updates = N_ROWS / (batch * cluster.n_gpus)
        rows.append(
            [
                f"{batch:,}",
                *[f"{1e3 * part:.1f}" for part in parts],
                f"{found.efficiency:.2f}",
                f"{updates:,.0f}",
                f"{found.epoch / 3600:.2f}",
            ]
        )
    head = ["products, ms", "all else, ms", "all-reduce, ms", "update, ms"]
    return markdown(
        [cluster.name + ": rows per GPU", *head, "efficiency", "updates a pass", "hours a pass"],
        rows,
    )


def _critical_table() -> str:
    steps = (1, 10, 100)
    rows = [
        [c.name, *[f"{critical_batch(replace(MODEL, n_steps=k), c):,.0f}" for k in steps]]
        for c in CLUSTERS
    ]
    return markdown(["", *[f"PCD-{k}" for k in steps]], rows)


def _remedy_table() -> str:
    small, large = replace(MODEL, batch=256), replace(MODEL, batch=4096)
    rows = []
    for name, of in {
        "as it is": lambda c: cost(small, c),
        "4096 rows per GPU": lambda c: cost(large, c),
        "bf16 on the network": lambda c: cost(small, replace(c, gradient_bytes=2)),
        "all-reduce beside the next update's chains": lambda c: cost(small, c, hidden_share=1.0),
        "an average of the weights every 8 updates": lambda c: cost(
            small, c, updates_per_reduction=8
        ),
        "hidden units split over a node's 8 GPUs": lambda c: cost(small, c, split=8),
        "PCD-10": lambda c: cost(replace(small, n_steps=10), c),
    }.items():
        found = [of(cluster) for cluster in (H100, ONE_ADAPTER)]
        rows.append(
            [
                name,
                *[f"{1e3 * c.update:.1f}" for c in found],
                *[f"{c.epoch / 3600:.2f}" for c in found],
            ]
        )
    return markdown(["", "update, ms", "one adapter", "hours a pass", "one adapter"], rows)


def _memory_table() -> str:
    update = replace(MODEL, batch=1024)
    columns = [memory_parts(update, momentum) for momentum in (0, 1, 2)]
    rows = [[part, *[f"{c[part] / 1e9:.2f}" for c in columns]] for part in columns[0]]
    rows.append(["together", *[f"{sum(c.values()) / 1e9:.2f}" for c in columns]])
    return markdown(["", "SGD", "with momentum", "Adam"], rows)


def _data_table() -> str:
    found = cost(replace(MODEL, batch=1024), H100)
    rows = []
    for name, of_row in {
        "float32": 4.0 * MODEL.n_visible,
        "uint8": 1.0 * MODEL.n_visible,
        "bits": MODEL.n_visible / 8,
        "CSR, 1 % ones (int32)": 0.01 * 4 * MODEL.n_visible,
    }.items():
        total = of_row * N_ROWS
        rate = total / found.epoch
        rows.append([name, f"{total / 1e12:,.1f}", f"{rate / 1e9:.1f}", f"{rate / 1e9 / 8:.2f}"])
    return markdown(["", "TB", "GB/s, all nodes", "GB/s, each node"], rows)
