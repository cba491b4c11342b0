"""Ridge least squares between vectors that are never all in memory: sums over them are all that is kept."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.errors import PatchscopesError


@dataclass
class Moments:
    """Sums over positions from which least squares follows, for several sources x and targets y at once, in float64.

    Their size does not depend on the number of positions.
    """

    n: int
    x: Float[Tensor, "source d_in"]
    y: Float[Tensor, "target d_out"]
    xx: Float[Tensor, "source d_in d_in"]
    xy: Float[Tensor, "source target d_in d_out"]

    @classmethod
    def zero(
        cls, n_sources: int, d_in: int, n_targets: int, d_out: int, device: torch.device | str = "cpu"
    ) -> "Moments":
        """The sums over no position."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        return cls(
            0,
            zeros(n_sources, d_in),
            zeros(n_targets, d_out),
            zeros(n_sources, d_in, d_in),
            zeros(n_sources, n_targets, d_in, d_out),
        )

    def add(self, x: Float[Tensor, "position source d_in"], y: Float[Tensor, "position target d_out"]) -> None:
        """Add positions."""
        # In two steps: some devices have no float64.
        x, y = (part.to(self.x.device).double() for part in (x, y))
        self.n += len(x)
        self.x += x.sum(dim=0)
        self.y += y.sum(dim=0)
        for source, of_source in enumerate(x.unbind(dim=1)):
            self.xx[source] += of_source.T @ of_source
            for target, of_target in enumerate(y.unbind(dim=1)):
                self.xy[source, target] += of_source.T @ of_target

    def solve(
        self, ridge: float
    ) -> tuple[Float[Tensor, "source target d_out d_in"], Float[Tensor, "source target d_out"]]:
        """Weights and biases of the ridge regression of every target on every source, in float32.

        They minimise the mean squared error plus `ridge` times the squared weights of inputs scaled to unit variance,
        so that the penalty means the same for every layer.

        Raises:
            PatchscopesError: the positions do not determine the weights.
        """
        n_sources, n_targets, d_in, d_out = self.xy.shape
        weights = torch.empty(n_sources, n_targets, d_out, d_in, device=self.xy.device)
        biases = torch.empty(n_sources, n_targets, d_out, device=self.xy.device)
        mean_y = self.y / self.n
        # One source at a time: copies of all moments would double the memory.
        for source in range(n_sources):
            mean_x = self.x[source] / self.n
            covariance = self.xx[source] / self.n - torch.outer(mean_x, mean_x)
            scale = covariance.diagonal().clamp(min=0).sqrt()
            scale = torch.where(scale > 0, scale, 1)
            correlation = covariance / torch.outer(scale, scale)
            correlation.diagonal().add_(ridge)
            factor, failed = torch.linalg.cholesky_ex(correlation)
            if int(failed) != 0:
                raise PatchscopesError(
                    f"{self.n} positions do not determine a map from {d_in} dimensions with ridge {ridge}; give more "
                    "texts or a larger ridge"
                )
            for target in range(n_targets):
                cross = self.xy[source, target] / self.n - torch.outer(mean_x, mean_y[target])
                weight = (torch.cholesky_solve(cross / scale[:, None], factor) / scale[:, None]).T
                weights[source, target] = weight
                biases[source, target] = mean_y[target] - weight @ mean_x
        return weights, biases
