"""A head on storage: skops in, skops out, the same bytes for the same head, and nothing that can run code."""

from __future__ import annotations

import io
import json
import re
import zipfile
from typing import Any

from classifiers.heads import head_type
from hornbook.errors import StoreError

TRUSTED = ["sklearn.tree._tree.Tree"]  # compiled arrays; the one type beyond what skops trusts by itself
FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file can carry


def dump_head(head: Any) -> bytes:
    """Return a head as a skops file.

    skops names arrays and objects by their addresses in memory and stamps the time; both are replaced here by numbers in
    order of appearance, so that training again gives the same bytes and what depends on them is not made again.
    """
    import skops.io

    with zipfile.ZipFile(io.BytesIO(skops.io.dumps(head))) as written:
        schema = written.read("schema.json").decode()
        arrays = {name: written.read(name) for name in written.namelist() if name != "schema.json"}
    numbers: dict[str, str] = {}
    schema = re.sub(
        r'("__id__": |")(\d{6,})(\.npy"|(?=[,\n}]))',
        lambda found: found[1] + numbers.setdefault(found[2], str(len(numbers) + 1)) + found[3],
        schema,
    )
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as file:
        renamed = {f"{numbers[name.removesuffix('.npy')]}.npy": data for name, data in arrays.items()}
        for name in sorted(renamed, key=lambda name: int(name.removesuffix(".npy"))):
            file.writestr(zipfile.ZipInfo(name, FIRST_DAY), renamed[name], zipfile.ZIP_DEFLATED)
        file.writestr(zipfile.ZipInfo("schema.json", FIRST_DAY), json.dumps(json.loads(schema)), zipfile.ZIP_DEFLATED)
    return sink.getvalue()


def load_head(data: bytes, kind: str, where: str) -> Any:
    """Return the head in a skops file. Raises StoreError if it holds anything but the types of a head of this kind."""
    import skops.io

    cure = "delete the artifact's folder; the scorer will be trained again"
    try:
        expected = head_type(kind)
        unknown = sorted(set(skops.io.get_untrusted_types(data=data)) - set(TRUSTED))
        loaded: Any = None if unknown else skops.io.loads(data, trusted=TRUSTED)
    except Exception as error:  # a damaged file fails in many ways
        raise StoreError(f"{where} is damaged: {error}", cure) from error
    if unknown or type(loaded) is not expected:
        found = ", ".join(unknown) or type(loaded).__name__
        raise StoreError(f"{where} holds {found}, not just a head of the kind {kind}", cure)
    return loaded
