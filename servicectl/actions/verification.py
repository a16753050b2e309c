"""What must hold before a model's bytes meet anything that would unpickle them, here or in Service B.

The chain: the pointer (signed, where keys are configured) names the digests of model and manifest; the manifest (signed
too) repeats which model, version and digest it is about; the pickle names only what the local allow-list allows; and it
was made with the scikit-learn that Service B has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from servicectl import log
from servicectl.errors import IntegrityError, ServicectlError
from servicectl.estate.artifacts import names
from servicectl.estate.artifacts.protocol import NoSuchBlob

if TYPE_CHECKING:
    from servicectl.actions.world import World
    from servicectl.estate.artifacts.pointer import Pointer
    from servicectl.training.spec import ProductFile

_CURE = "it was not opened; restore the artifact store's files, or publish another version"


@contextmanager
def opened(product: ProductFile, role: str) -> Iterator[BufferedReader]:
    """A product file, held against its digest, at its beginning: what was checked is what is read. Raises IntegrityError.

    Read in pieces; a model may be larger than what memory is to be used for it.
    """
    with _readable(product, role) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != product.sha256:
            raise IntegrityError(
                f"the {role} {product.path} has sha256 {found}, on record is {product.sha256}",
                cure="it was not opened; fetch or train it again",
            )
        file.seek(0)
        yield file


def _readable(product: ProductFile, role: str) -> BufferedReader:
    try:
        return Path(product.path).open("rb")
    except OSError as error:
        raise IntegrityError(
            f"the {role} {product.path} cannot be read: {error.strerror}", cure="fetch or train it again"
        ) from None


def allowed_names(world: World, model_id: str) -> tuple[str, ...]:
    """What a model's pickle may name beyond scikit-learn's own, by the local configuration alone."""
    libraries = tuple(name.replace("-", "_") for name in world.config.serving.libraries)
    model = world.config.models.get(model_id)
    own = (model.estimator.partition(".")[0],) if model is not None and model.estimator else ()
    return (*world.config.trust.allowed_modules, *libraries, *(root for root in own if root != "sklearn"))


def manifest_behind(world: World, location: str, pointer: Pointer) -> dict[str, Any] | None:
    """The manifest of a pointer's version, held against it; None for an adopted version, which has none.

    Raises IntegrityError for one that is missing, unsigned where signatures are asked for, or another version's.
    """
    if pointer.manifest_sha256 is None:
        return None
    name = names.manifest(location, pointer.model_id, pointer.version)
    try:
        content = world.artifacts.read(name)[0]
    except NoSuchBlob:
        raise IntegrityError(f"{name} is missing", cure=_CURE) from None
    if hashlib.sha256(content).hexdigest() != pointer.manifest_sha256:
        raise IntegrityError(f"{name} is not the manifest that was published", cure=_CURE)
    world.trust.verify("manifest", content, name)
    manifest: dict[str, Any] = msgspec.json.decode(content)
    told = (manifest.get("model_id"), manifest.get("version"), manifest.get("model", {}).get("sha256"))
    if told != (pointer.model_id, pointer.version, pointer.sha256):
        raise IntegrityError(f"{name} is about another model than the pointer", cure=_CURE)
    return manifest


def check_artifact(world: World, location: str, pointer: Pointer, model: ProductFile) -> None:
    """Hold a version's file, whose digest is the pointer's, against manifest and allow-list.

    An adopted version is taken on the word of the operator who adopted it. Raises as `check_model`.
    """
    manifest = manifest_behind(world, location, pointer)
    if manifest is not None:
        check_model(world, pointer.model_id, manifest, model)


def check_model(world: World, model_id: str, manifest: Mapping[str, Any], model: ProductFile) -> None:
    """Raises IntegrityError for a pickle that names what it may not, and as `check_scikit_learn`."""
    from servicectl.training import pickles

    with opened(model, "model") as file:
        wrong = pickles.refused(file, allowed_names(world, model_id))
    if wrong:
        raise IntegrityError(
            f"the model of {model_id} names {', '.join(wrong[:5])}, which is not allowed; it was not opened",
            cure="find out where this file came from; [trust] allowed_modules says what else is allowed",
        )
    made_with = str(manifest.get("libraries", {}).get("scikit-learn", "an unknown version"))
    check_scikit_learn(world, f"the model of {model_id} was made with", made_with)


# What the kernel must grant for the trial load of a model, should a hostile one come past digests and allow-list.
WALLS = ("no_new_privs", "seccomp")


def check_confinement(held: Sequence[str], *, required: bool) -> None:
    """Raises ServicectlError where a model's trial load was not walled in and [trust] asks for that."""
    absent = [wall for wall in WALLS if wall not in held]
    if absent and required:
        raise ServicectlError(
            f"the kernel did not grant {', '.join(absent)} to the trial load of the model (trust.require_confinement)",
            cure="run on Linux with seccomp (x86-64, aarch64), or set trust.require_confinement = false",
        )


def check_scikit_learn(world: World, what: str, version: str) -> None:
    """Hold a version against Service B's, as exactly as that is configured.

    Raises ServicectlError where they differ and serving.mismatch is "refuse".
    """
    has = world.config.serving.scikit_learn
    if has is None or version.split(".")[: len(has.split("."))] == has.split("."):
        return
    differs = f"{what} scikit-learn {version}, Service B has {has}"
    if world.config.serving.mismatch == "refuse":
        raise ServicectlError(
            differs,
            cure='train with Service B\'s version, correct serving.scikit_learn, or set serving.mismatch = "warn"',
        )
    log.warning(f"{differs} (serving.mismatch = warn)")
