"""How much neighbouring latents still correlate: maps of several training runs side by side.

    python examples/correlation_maps.py KODAK maps.png runs/variants/plain runs/variants/correlation-channels

Latents are normalised by their predicted means and scales.  A map shows, for each neighbour in a 5x5 window, the root
mean square over channels of its correlation with the centre, over all images, at qualities 2, 4 and 6.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib import colormaps

from pillow_lic.models.hyperprior import HyperpriorModel, scale_of
from pillow_lic.training.correlation import correlation_by_channel
from pillow_lic.training.importing import load_state
from pillow_lic.training.recipe import recipe_from
from pillow_lic.training.validate import validation_images

QUALITIES = (2.0, 4.0, 6.0)
WINDOW = 5


def load(run: Path) -> HyperpriorModel:
    """The averaged weights of a run."""
    saved = load_state(run / "weights.pt", "cpu", "recipe", "average")
    model = recipe_from(saved["recipe"]).make_model()
    model.load_state_dict({name: value.float() for name, value in saved["average"].items()})
    return model.eval()


@torch.no_grad()
def correlation_map(model: HyperpriorModel, folder: Path, quality: float) -> torch.Tensor:
    """(WINDOW, WINDOW): rms over channels; channels that are hardly coded count little and are left out."""
    found = []
    for pixels in validation_images(folder):
        x = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() - 127.5
        q = torch.tensor([quality])
        y = model.analysis(x, q) * model.gains(q)[0]
        inverse, z_mean, _ = model.z_prior(q)
        z = (model.hyper_analysis(y, q) / inverse - z_mean).round()
        mean, index, _ = model.hyper_synthesis((z + z_mean) * inverse, q)
        normalised = (y - mean) / scale_of(index)
        coded = index.mean(dim=(0, 2, 3)) > 12
        found.append(correlation_by_channel(normalised[:, coded], WINDOW).square().mean(dim=0))
    return torch.stack(found).mean(dim=0).sqrt()


def main() -> None:
    """Draw a row of maps for each run and print the mean over the eight nearest neighbours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("runs", nargs="+", type=Path)
    given = parser.parse_args()
    figure, axes = plt.subplots(
        len(given.runs), len(QUALITIES), squeeze=False, layout="constrained", figsize=(7, 2.4 * len(given.runs))
    )
    for row, run in zip(axes, given.runs, strict=True):
        model = load(run)
        for axis, quality in zip(row, QUALITIES, strict=True):
            found = correlation_map(model, given.images, quality)
            near = found[1:4, 1:4].flatten()[[0, 1, 2, 3, 5, 6, 7, 8]].mean()
            print(f"{run.name:24} quality {quality:g}: {near:.3f}")
            found[WINDOW // 2, WINDOW // 2] = 0
            shown = axis.imshow(found, vmin=0, vmax=0.3, cmap=colormaps["viridis"])
            axis.set_title(f"{run.name}, quality {quality:g}", fontsize=8)
            axis.set_xticks([])
            axis.set_yticks([])
    figure.colorbar(shown, ax=axes, shrink=0.8)
    figure.savefig(given.output, dpi=110)


if __name__ == "__main__":
    main()
