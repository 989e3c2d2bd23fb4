"""Galaxies from images and spectra together: a notebook-first companion to AstroCLIP (arXiv:2310.03024).

The names below load on first use, so that `import astroclip` costs nothing (no torch).
"""

__version__ = "0.1.0"

_PUBLIC = {
    "AstroCLIP": "astroclip.models.astroclip",
    "VisionTransformer": "astroclip.models.vit",
    "SpecFormer": "astroclip.models.specformer",
    "RedshiftClassifier": "astroclip.models.redshift",
    "SimilarityIndex": "astroclip.search.similarity",
    "Predictor": "astroclip.answers.predictor",
    "fetch": "astroclip.surveys.remote",
    "read_image": "astroclip.files.cutout_files",
    "read_spectra": "astroclip.files.spectrum_files",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name):
    if name in _PUBLIC:
        from importlib import import_module

        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'astroclip' has no attribute '{name}'")


def __dir__():
    return sorted(__all__)
