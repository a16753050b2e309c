from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from servicectl.errors import ConfigError
from servicectl.estate.artifacts import open_store
from tests.parts import ROOT
from tests.parts.azurite import KEY, connection_string


def test_a_file_url_is_taken_literally(tmp_path: Path) -> None:
    folder = tmp_path / "a b%20#c?"
    folder.mkdir()

    open_store(f"file://{folder}", None).create("M/a", b"x", {})

    assert (folder / "M/a").read_bytes() == b"x"


@pytest.mark.parametrize(
    "url",
    [
        *("", "artifacts", "file://artifacts", "file://~/artifacts", "s3://models"),
        *("azure://", "azure://a", "azure://a/b", "azure://Models", f"azure://models?sig={KEY}"),
        *(connection_string(1), f"BlobEndpoint=https://x;AccountKey={KEY}"),
    ],
)
def test_a_url_that_names_no_store_is_a_configuration_error_that_repeats_no_secret(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_store(url, None)

    assert refused.value.cure
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("text", ["nonsense", "AccountName=x", f"AccountKey={KEY}", "a=b;c"])
def test_a_malformed_connection_string_is_a_configuration_error_that_repeats_nothing_of_it(text: str) -> None:
    with pytest.raises(ConfigError, match="malformed") as refused:
        open_store("azure://models", text)

    assert text not in str(refused.value)


def test_without_any_credentials_the_message_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_URL", raising=False)

    with pytest.raises(ConfigError, match="no credentials") as refused:
        open_store("azure://models", None)

    assert "$AZURE_STORAGE_CONNECTION_STRING" in refused.value.cure


def test_the_default_credential_chain_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_URL", "https://account.blob.core.windows.net")
    monkeypatch.setitem(sys.modules, "azure.identity", None)

    with pytest.raises(ConfigError, match="azure-identity") as refused:
        open_store("azure://models", None)

    assert "pip install" in refused.value.cure


def test_a_folder_is_opened_without_loading_azure(tmp_path: Path) -> None:
    script = (
        "import sys; from servicectl.estate.artifacts import names, open_store, pointer\n"
        f"open_store('file://{tmp_path}', None)\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('azure', 'requests', 'cryptography')))"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)

    assert (ran.returncode, ran.stdout.strip()) == (0, "[]"), ran.stderr
