"""Nets in the Open Neural Network Exchange format, for programs without torch."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from freenergy._version import __version__
from freenergy.files import write_atomically

__all__ = ["PredictionNet", "write_onnx"]

_DOC = (
    "rows: single-precision numbers with the columns of the metadata's feature_names. "
    "encode_columns(X).astype('float32') of the estimator that was written makes them of a table."
)


class PredictionNet(nn.Module):
    r"""A net with what its outputs stand for.

    =================  ===========================================================================
    kind               outputs for rows of shape (n, n_features)
    =================  ===========================================================================
    ``"multiclass"``   :math:`\operatorname{softmax}(f)`, shape (n, n_classes), and the number of
                       the largest
    ``"binary"``       :math:`(1 - \sigma(f), \sigma(f))`, shape (n, 2), and the number of the
                       larger
    ``"multilabel"``   :math:`\sigma(f)`, shape (n, n_outputs), and whether each exceeds one half
    ``"identity"``     :math:`f`, shape (n, n_outputs)
    ``"exp"``          :math:`e^f`, shape (n, n_outputs)
    =================  ===========================================================================

    Parameters
    ----------
    net : torch.nn.Sequential
        Copied, to the CPU and single precision; layers that only training needs are left out.
    kind : str

    Examples
    --------
    >>> import torch
    >>> net = PredictionNet(torch.nn.Sequential(torch.nn.Linear(3, 1)), "binary")
    >>> [output.shape for output in net(torch.eye(3))]
    [torch.Size([3, 2]), torch.Size([3])]
    """

    def __init__(self, net: nn.Sequential, kind: str) -> None:
        super().__init__()
        layers = [
            _of_evaluation(copy.deepcopy(layer).cpu().float())
            for layer in net
            if not isinstance(layer, nn.Dropout | nn.AlphaDropout)
        ]
        self.net = nn.Sequential(*layers)
        self.kind = kind
        self.eval()

    @property
    def output_names(self) -> list[str]:
        """Names of what :meth:`forward` returns."""
        return ["prediction"] if self.kind in ("identity", "exp") else ["probabilities", "label"]

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Predictions for rows of shape (n, n_features)."""
        fields = self.net(rows)
        if self.kind == "multiclass":
            return fields.softmax(1), fields.argmax(1)
        if self.kind == "multilabel":
            return fields.sigmoid(), (fields > 0).long()
        if self.kind == "binary":
            return torch.cat([(-fields).sigmoid(), fields.sigmoid()], 1), (fields[:, 0] > 0).long()
        return (fields.exp() if self.kind == "exp" else fields,)


def _of_evaluation(layer: nn.Module) -> nn.Module:
    if not isinstance(layer, nn.BatchNorm1d):
        return layer
    # Torch's own: ours ask for the number of rows, which an export would then hold fast.
    plain = nn.BatchNorm1d(layer.num_features, eps=layer.eps)
    plain.load_state_dict(layer.state_dict())
    return plain


def write_onnx(
    path: str | os.PathLike[str],
    net: PredictionNet,
    n_features: int,
    *,
    feature_names: Sequence[str],
    classes: Sequence[Any] | None = None,
) -> None:
    """Write a net to a file that takes rows of any number.

    The file's metadata hold the names of the columns, and the classes, as JSON; its doc string
    says where the rows come from.

    Parameters
    ----------
    path : path-like
    net : PredictionNet
    n_features : int
    feature_names : sequence of str
    classes : sequence or None, default=None

    Raises
    ------
    ImportError
        Where the packages that the export needs are not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  what torch writes the file with
    except ImportError as error:
        raise ImportError(
            f"to_onnx needs {error.name}, which is not installed: pip install freenergy[onnx]"
        ) from error
    with _quiet():
        program = torch.onnx.export(
            net,
            (torch.zeros(2, n_features),),
            input_names=["rows"],
            output_names=net.output_names,
            dynamic_shapes=({0: torch.export.Dim("n")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    known = {"freenergy": __version__, "feature_names": json.dumps(list(feature_names))}
    if classes is not None:
        known["classes"] = json.dumps(list(classes))
    onnx.helper.set_model_props(model, known)
    model.doc_string = _DOC
    onnx.checker.check_model(model)
    write_atomically(path, model.SerializeToString())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own news, which are about other packages and its own parts."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
