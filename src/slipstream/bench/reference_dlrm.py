"""The baseline of the step benchmark: DLRM on plain torch, as facebookresearch/dlrm trains it on a CPU.

One ``nn.EmbeddingBag(mode="sum", sparse=True)`` a table, dot interaction by ``bmm``, BCE on a sigmoid,
``torch.optim.SGD`` over everything, float32. Written from the paper (Naumov et al., arXiv 1906.00091) and the
behaviour of that program; none of its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

KAGGLE_BOTTOM = (13, 512, 256, 64, 16)
KAGGLE_TOP = (512, 256, 1)


class ReferenceDLRM(nn.Module):
    """DLRM in the Criteo Kaggle configuration.

    Args:
        rows: Rows of each of F tables.
        bottom: Widths of the bottom MLP, from the dense columns to the rows' size D.
        top: Widths of the top MLP after its input.
        tables: Whether it has the tables itself; else somebody else's rows go to :meth:`dense_part`.
    """

    def __init__(
        self,
        rows: Sequence[int],
        *,
        bottom: Sequence[int] = KAGGLE_BOTTOM,
        top: Sequence[int] = KAGGLE_TOP,
        tables: bool = True,
    ) -> None:
        super().__init__()
        vectors = len(rows) + 1
        # Zeros: the benchmark copies the weights of the model it compares with.
        self.tables = nn.ModuleList(
            nn.EmbeddingBag(count, bottom[-1], mode="sum", sparse=True, _weight=torch.zeros(count, bottom[-1]))
            for count in (rows if tables else ())
        )
        self.bottom = _mlp(bottom, nn.ReLU())
        self.top = _mlp((bottom[-1] + vectors * (vectors - 1) // 2, *top), nn.Sigmoid())
        pairs = torch.tril_indices(vectors, vectors, offset=-1)
        self.left: Tensor = pairs[0]
        self.right: Tensor = pairs[1]

    def forward(self, dense: Tensor, offsets: Sequence[Tensor], ids: Sequence[Tensor]) -> Tensor:
        """Probabilities [B].

        Args:
            dense: float32 [B, n].
            offsets: For each feature int64 [B].
            ids: For each feature int64 [B].
        """
        return self.dense_part(dense, [table(i, o) for table, i, o in zip(self.tables, ids, offsets, strict=True)])

    def dense_part(self, dense: Tensor, rows: Sequence[Tensor]) -> Tensor:
        """Probabilities [B].

        Args:
            dense: float32 [B, n].
            rows: For each feature its pooled rows [B, D].
        """
        x = self.bottom(dense)
        vectors = [x, *rows]
        stacked = torch.cat(vectors, dim=1).view(len(x), len(vectors), -1)
        dots = torch.bmm(stacked, stacked.transpose(1, 2))[:, self.left, self.right]
        return self.top(torch.cat([x, dots], dim=1)).squeeze(1)

    def copy_from(self, linear: Sequence[nn.Linear], tables: Sequence[Tensor]) -> None:
        """Take over the weights of another DLRM: its linear layers from the bottom to the top, and its tables."""
        mine = [module for module in self.modules() if isinstance(module, nn.Linear)]
        with torch.no_grad():
            for here, there in zip(mine, linear, strict=True):
                here.weight.copy_(there.weight)
                here.bias.copy_(there.bias)
            for table, weight in zip(self.tables.parameters(), tables, strict=True):
                table.copy_(weight)


def _mlp(widths: Sequence[int], last: nn.Module) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (width, following) in enumerate(pairwise(widths)):
        layers += [nn.Linear(width, following), last if i == len(widths) - 2 else nn.ReLU()]
    return nn.Sequential(*layers)
