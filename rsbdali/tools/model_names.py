"""Names of timm's models for a shell's completion: kept in the cache folder, since importing timm takes seconds."""

from importlib.metadata import version

from rsbdali.atomic import write_text
from rsbdali.data.cache import default_folder


def model_names() -> list[str]:
    """All models of the installed timm, sorted."""
    path = default_folder() / f"models-timm-{version('timm')}.txt"
    if not path.exists():
        import timm

        write_text(path, "".join(f"{name}\n" for name in timm.list_models()))
    return path.read_text(encoding="utf-8").split()
