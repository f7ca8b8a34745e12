"""The RBM that classifies: rows and their classes share one layer of hidden units."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from freenergy.models.rbm import RBM
from freenergy.models.units import Unit, draw_category, get_unit
from freenergy.random import RandomStream

__all__ = ["DiscriminativeRBM"]

# Of the fields of all classes on all hidden units, so many at a time stay in cache.
_BLOCK_ELEMENTS = 2**15


class DiscriminativeRBM(nn.Module):
    r"""Restricted Boltzmann machine over rows :math:`x` and their classes :math:`y`.

    .. math:: E(x, y, h) = -a^\top x - d_y - b^\top h - x^\top W h - U_y^\top h, \qquad
              p(x, y, h) = e^{-\beta E(x, y, h)} / Z(\beta)

    With the hidden units summed out, the classes of a row are compared exactly, whatever the
    partition function: :math:`p(y \mid x) \propto e^{-\beta F(x, y)}`, and the loss
    :math:`-\ln p(y \mid x) = \beta (F(x, y) - F(x))` is a difference of free energies.

    :math:`\beta = 1/T` is an argument of every method that depends on it, and free energies are
    in units of the energy, as in :class:`~freenergy.models.RBM`.

    Parameters
    ----------
    n_visible, n_classes, n_hidden : int
        Numbers of visible units, of classes (at least two) and of hidden units.
    visible, hidden : str or Unit, default="bernoulli"
        Unit types: ``"bernoulli"`` (0/1), ``"spin"`` (±1), ``"binomial(n)"`` (0 to n) or a
        :class:`~freenergy.models.Unit`.
    dtype, device :
        Of the parameters, as in :class:`torch.nn.Linear`.

    Attributes
    ----------
    weight : Parameter of shape (n_visible, n_hidden)
        Couplings :math:`W`, drawn from N(0, 0.01²).
    label_weight : Parameter of shape (n_classes, n_hidden)
        Couplings :math:`U` of the classes, drawn from N(0, 0.01²).
    visible_bias : Parameter of shape (n_visible,)
        Biases :math:`a`, zero.
    label_bias : Parameter of shape (n_classes,)
        Biases :math:`d`, zero.
    hidden_bias : Parameter of shape (n_hidden,)
        Biases :math:`b`, zero.

    Raises
    ------
    ValueError
        When a number is too small, or no unit type has that name.

    References
    ----------
    Larochelle and Bengio, *Classification using discriminative restricted Boltzmann machines*,
    2008;
    Larochelle, Mandel, Pascanu, Bengio, *Learning algorithms for the classification restricted
    Boltzmann machine*, 2012;
    Cherla, Tran, d'Avila Garcez, Weyde, *Generalising the discriminative restricted Boltzmann
    machine*, arXiv:1604.01806.

    Examples
    --------
    >>> import torch
    >>> model = DiscriminativeRBM(4, 3, 2, hidden="spin")
    >>> x = torch.tensor([[1.0, 0, 1, 0], [0, 0, 1, 1]])
    >>> model.log_proba(x).shape
    torch.Size([2, 3])
    >>> loss = model.free_energy(x, torch.tensor([2, 0])) - model.free_energy(x)
    >>> bool((loss > 0).all())
    True
    """

    def __init__(
        self,
        n_visible: int,
        n_classes: int,
        n_hidden: int,
        *,
        visible: str | Unit = "bernoulli",
        hidden: str | Unit = "bernoulli",
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__()
        if n_visible < 1 or n_hidden < 1 or n_classes < 2:
            raise ValueError(
                "a discriminative RBM needs at least one visible unit, two classes and one hidden "
                f"unit, got {n_visible}, {n_classes} and {n_hidden}"
            )
        self.visible = get_unit(visible)
        self.hidden = get_unit(hidden)
        self.weight = nn.Parameter(torch.empty(n_visible, n_hidden, dtype=dtype, device=device))
        self.label_weight = nn.Parameter(
            torch.empty(n_classes, n_hidden, dtype=dtype, device=device)
        )
        self.visible_bias = nn.Parameter(torch.zeros(n_visible, dtype=dtype, device=device))
        self.label_bias = nn.Parameter(torch.zeros(n_classes, dtype=dtype, device=device))
        self.hidden_bias = nn.Parameter(torch.zeros(n_hidden, dtype=dtype, device=device))
        # On no device there is nothing to draw, and torch would load seconds of code for it.
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=0.01)
            nn.init.normal_(self.label_weight, std=0.01)

    @property
    def n_visible(self) -> int:
        """Number of visible units."""
        return self.weight.shape[0]

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return self.label_weight.shape[0]

    @property
    def n_hidden(self) -> int:
        """Number of hidden units."""
        return self.weight.shape[1]

    def energy(self, x: Tensor, y: Tensor, h: Tensor, beta: float = 1.0) -> Tensor:
        r"""Energy in units of the temperature, :math:`\beta E(x, y, h)`.

        Parameters
        ----------
        x : Tensor of shape (..., n_visible)
        y : Tensor of int64, shape (...)
            Classes, from 0.
        h : Tensor of shape (..., n_hidden)
            Leading dimensions broadcast against each other.
        beta : float, default=1
            Inverse temperature.

        Returns
        -------
        Tensor of shape (...)
        """
        y = self._checked(y)
        hidden = ((x @ self.weight + self.label_weight[y] + self.hidden_bias) * h).sum(-1)
        return -beta * (x @ self.visible_bias + self.label_bias[y] + hidden)

    def class_free_energies(self, x: Tensor, beta: float = 1.0) -> Tensor:
        r"""Free energies of a row with each of the classes, the hidden units summed out.

        .. math:: F(x, y; \beta) = -a^\top x - d_y
                  - \frac1\beta \sum_j \ln z_j\big(\beta (b_j + U_{yj} + (x^\top W)_j)\big)

        Parameters
        ----------
        x : Tensor of shape (..., n_visible)
        beta : float, default=1
            Inverse temperature, positive.

        Returns
        -------
        Tensor of shape (..., n_classes), in units of the energy.
        """
        return -(x @ self.visible_bias)[..., None] - self._class_log_weights(x, beta) / beta

    def free_energy(self, x: Tensor, y: Tensor | None = None, beta: float = 1.0) -> Tensor:
        r"""Free energy of a row with its class, :math:`F(x, y)`, or over all classes.

        .. math:: F(x; \beta) = -\frac1\beta \ln \sum_y e^{-\beta F(x, y; \beta)}

        Parameters
        ----------
        x : Tensor of shape (..., n_visible)
        y : Tensor of int64, shape (...), or None, default=None
            Classes, from 0. Their leading dimensions broadcast against those of ``x``.
        beta : float, default=1
            Inverse temperature, positive.

        Returns
        -------
        Tensor of shape (...), in units of the energy.
        """
        bias = x @ self.visible_bias
        if y is None:
            return -bias - torch.logsumexp(self._class_log_weights(x, beta), -1) / beta
        log_z = self.hidden.log_partition(self.hidden_field(x, y, beta)).sum(-1)
        return -bias - self.label_bias[y] - log_z / beta

    def log_proba(self, x: Tensor, beta: float = 1.0) -> Tensor:
        r"""Log-probabilities of the classes, :math:`\ln p(y \mid x)`, shape (..., n_classes).

        The visible biases are the same for every class; they are left out before the difference is
        taken, so that it loses no digits to them.
        """
        return torch.log_softmax(self._class_log_weights(x, beta), -1)

    def row_field(self, x: Tensor, beta: float = 1.0) -> Tensor:
        r"""The part of the hidden field that all classes share, :math:`\beta (b + W^\top x)`."""
        if x.dim() == 2:
            return torch.addmm(self.hidden_bias, x, self.weight, beta=beta, alpha=beta)
        return beta * (x @ self.weight + self.hidden_bias)

    def hidden_field(self, x: Tensor, y: Tensor, beta: float = 1.0) -> Tensor:
        r"""Field on the hidden units, :math:`\beta (b + W^\top x + U_y)`, shape (..., n_hidden)."""
        return self.row_field(x, beta) + beta * self.label_weight[self._checked(y)]

    def visible_field(self, h: Tensor, beta: float = 1.0, out: Tensor | None = None) -> Tensor:
        r"""Field on the visible units, :math:`\beta (a + W h)`, shape (..., n_visible)."""
        if h.dim() == 2:
            return torch.addmm(self.visible_bias, h, self.weight.T, beta=beta, alpha=beta, out=out)
        return torch.mul(h @ self.weight.T + self.visible_bias, beta, out=out)

    def label_field(self, h: Tensor, beta: float = 1.0) -> Tensor:
        r"""Field on the classes, :math:`\beta (d + U h)`, shape (..., n_classes)."""
        return beta * (h @ self.label_weight.T + self.label_bias)

    def hidden_mean(self, x: Tensor, y: Tensor, beta: float = 1.0) -> Tensor:
        r"""Conditional means :math:`\langle h_j \rangle` given row and class, (..., n_hidden)."""
        return self.hidden.mean(self.hidden_field(x, y, beta))

    def visible_mean(self, h: Tensor, beta: float = 1.0) -> Tensor:
        r"""Conditional means :math:`\langle x_i \rangle` given ``h``, shape (..., n_visible)."""
        return self.visible.mean(self.visible_field(h, beta))

    def label_log_proba(self, h: Tensor, beta: float = 1.0) -> Tensor:
        r"""Log-probabilities of the classes given ``h``, :math:`\ln p(y \mid h)`."""
        return torch.log_softmax(self.label_field(h, beta), -1)

    @torch.no_grad()
    def sample_hidden(
        self, x: Tensor, y: Tensor, random: RandomStream, beta: float = 1.0
    ) -> Tensor:
        """Hidden states drawn given row and class, shape (..., n_hidden)."""
        field = self.hidden_field(x, y, beta)
        return self.hidden.sample(field, random, field)

    @torch.no_grad()
    def sample_visible(
        self, h: Tensor, random: RandomStream, beta: float = 1.0, out: Tensor | None = None
    ) -> Tensor:
        """Rows drawn given ``h``, shape (..., n_visible)."""
        field = self.visible_field(h, beta, out)
        return self.visible.sample(field, random, field)

    @torch.no_grad()
    def sample_labels(self, h: Tensor, random: RandomStream, beta: float = 1.0) -> Tensor:
        """Classes drawn given ``h``: int64, shape (...)."""
        return draw_category(self.label_field(h, beta), random)

    @torch.no_grad()
    def marginal_rbm(self) -> RBM:
        """An RBM over rows alone with copies of ``weight``, ``visible_bias`` and ``hidden_bias``.

        This is the machine whose hidden units feel no class, for instruments that read an RBM. It
        is *not* the marginal :math:`p(x)` of this model, whose free energy is
        :meth:`free_energy` without a class: that is a mixture over the classes.
        """
        # A new RBM draws its weights; who reads a model must not move torch's stream.
        with torch.random.fork_rng(devices=[]):
            model = RBM(
                self.n_visible,
                self.n_hidden,
                visible=self.visible,
                hidden=self.hidden,
                dtype=self.weight.dtype,
            )
        for name, parameter in model.named_parameters():
            parameter.copy_(self.get_parameter(name))
        return model.to(self.weight.device)

    def extra_repr(self) -> str:
        """Sizes and unit types, for ``repr``."""
        return (
            f"n_visible={self.n_visible}, n_classes={self.n_classes}, n_hidden={self.n_hidden}, "
            f"visible={self.visible.name!r}, hidden={self.hidden.name!r}"
        )

    def class_fields(self, field: Tensor, beta: float) -> Iterator[tuple[slice, Tensor]]:
        """Hidden fields of rows with each of the classes, a block of rows at a time.

        Parameters
        ----------
        field : Tensor of shape (n, n_hidden)
            From :meth:`row_field`.
        beta : float
            Inverse temperature, that of ``field``.

        Yields
        ------
        part : slice
            The rows of the block.
        fields : Tensor of shape (n_block, n_classes, n_hidden)
        """
        label_field = beta * self.label_weight
        size = max(1, _BLOCK_ELEMENTS // label_field.numel())
        for start in range(0, max(1, len(field)), size):
            part = slice(start, start + size)
            yield part, field[part, None] + label_field

    def class_log_weights(self, field: Tensor, beta: float) -> Tensor:
        r""":math:`-\beta F(x, y)` but for the visible biases, from :meth:`row_field`.

        Parameters
        ----------
        field : Tensor of shape (n, n_hidden)
        beta : float
            Inverse temperature, that of ``field``.

        Returns
        -------
        Tensor of shape (n, n_classes)
        """
        log_z = [
            self.hidden.log_partition(fields).sum(-1)
            for _, fields in self.class_fields(field, beta)
        ]
        return torch.add(torch.cat(log_z), self.label_bias, alpha=beta)

    def _class_log_weights(self, x: Tensor, beta: float) -> Tensor:
        """The same from rows, shape (..., n_classes)."""
        field = self.row_field(x, beta).reshape(-1, self.n_hidden)
        return self.class_log_weights(field, beta).view(*x.shape[:-1], self.n_classes)

    def _checked(self, y: Tensor) -> Tensor:
        """Classes as they are, where each has a row in ``label_weight``."""
        # A label of -1 would index the last class.
        if y.numel() and not bool(((y >= 0) & (y < self.n_classes)).all()):
            raise ValueError(
                f"classes are numbered from 0 to {self.n_classes - 1}, got "
                f"{int(y.min())} to {int(y.max())}"
            )
        return y
