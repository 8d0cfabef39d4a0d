"""What is personal data and what only looks like it, the laws of replacing it, and the stage."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_sample_and_scores import corpus

from classifiers.heuristics import Heuristics, HeuristicsSettings
from classifiers.personal_data import TYPES, luhn, replaced
from classifiers.pii import Pii, PiiPart, PiiSettings
from hornbook.documents import DOCUMENT_SCHEMA, content_key
from hornbook.store import Store

# Of their forms, and of nobody: made up for this test, in pieces, so that no scanner takes this file for a leak.
AWS = "AKIA" + "Z7Q2M4X8K1P9R3T6"
GITHUB = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"
SLACK = "xoxb-" + "123456789012-abcdefABCDEF"
WEB_TOKEN = "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"
RANDOM = "q7Rt2" + "Lm9XzB4vK8wJ1pY6s"
BLOCK = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow" + "IBAAKCAQEA7x9fK2v" * 6 + "\n-----END RSA PRIVATE KEY-----"

FOUND = [
    ("email", "write to jane.doe+news@mail.uni-ulm.de.", "write to <EMAIL>."),
    ("email", "<j@x.org>, mailto:k@y.co?subject=z", "<<EMAIL>>, mailto:<EMAIL>?subject=z"),
    ("phone", "call +49 (0)30 123456-78 or +1 202-555-0143.", "call <PHONE> or <PHONE>."),
    ("phone", "(202) 555-0143, 202.555.0143, 1-202-555-0143", "<PHONE>, <PHONE>, <PHONE>"),
    ("phone", "01 42 68 53 00; 020 7946 0958; (089) 123456", "<PHONE>; <PHONE>; <PHONE>"),
    ("phone", "+14155550123", "<PHONE>"),
    ("phone", "Tel.: 030/1234567\nFax 1234 56789", "Tel.: <PHONE>\nFax <PHONE>"),
    ("ip", "from 93.184.216.34:80, and 8.8.8.8? ping 8.8.8.8!", "from <IP>:80, and 8.8.8.8? ping <IP>!"),
    ("ip", "at 2606:2800:220:1:248:1893:25c8:1946 and [2001:4860:4860::8888]", "at <IP> and [<IP>]"),
    ("card", "4111 1111 1111 1111, 5500-0000-0000-0004, 340000000000009.", "<CARD>, <CARD>, <CARD>."),
    ("key", f"aws: {AWS}, {GITHUB}; {SLACK}\n{WEB_TOKEN}", "aws: <KEY>, <KEY>; <KEY>\n<KEY>"),
    ("key", f'x = """{BLOCK}"""', 'x = """<KEY>"""'),
    ("key", BLOCK.replace("-----END", "")[:90], "<KEY>"),  # cut off
    ("key", f"API_KEY='{RANDOM}'\n\"secret\": \"{RANDOM}\"", "API_KEY='<KEY>'\n\"secret\": \"<KEY>\""),
    ("key", f"export DB_PASSWORD={RANDOM}\n", "export DB_PASSWORD=<KEY>\n"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "expected"), FOUND)
def test_personal_data_is_replaced_by_its_type(kind: str, text: str, expected: str):
    wanted = expected.count(f"<{kind.upper()}>")
    assert replaced(text) == (expected, {kind: wanted})
    assert replaced(text, [other for other in TYPES if other != kind])[0].count(f"<{kind.upper()}>") == 0


NOT_FOUND = [
    "On 2024-01-02 at 12:34:56, from 1999 to 2001; 01/02/2003; 2021-03-04T05:06:07+0100; 20240102123456; fax (2026-07-28 09)",
    "version 1.2.3.4, v10.2.30.4, numpy==93.1.2.3, release 4.3.0.38, section 8.2.4.45, 1.2.3.4.5, 256.1.1.1, 8.08.8.8",
    "ISBN 978-0-306-40615-7, ISBN 0-306-40615-2, ISSN 0378-5955, EAN 4006381333931, arXiv:2112.11446",
    "x = [123456789, 1234567890, 3.14159265358979, +12.34567890, 0xdeadbeef, 1_000_000_000, 202555014]",
    "0644 1000 1000 file\n00000010 2345 6789 abcd\n01 02 03 04 05 06 07\n@@ -12,7 +12345,6 @@ 10-20-30",
    "a::b std::vector<int> 12:34:56 aa:bb:cc:dd:ee:ff x[2001::3] ::1 fe80::1 2001:db8::1",
    "93.184.0.0/16, OID 1.3.132.1, 127.0.0.1 10.0.0.1 192.168.1.1 172.16.0.1 192.0.2.1 198.51.100.7 0.0.0.0 255.255.255.0 224.0.0.1",
    "me@example.com, git@github.com:a/b.git, logo@2x.png, @decorator, user@localhost, a @ b.c, x@y",
    "4111 1111 1111 1112, 1234567812345678, 0000000000000000, 1700000000000",
    "secret_key = os.environ['THE_SECRET_KEY_2024'], token = get_token_from_server_2(), key: some_long_key_name_12",
    "quant_key = kFp8Dynamic128Sym, the_key=rfc5652.UserKeyingMaterial2",
    'if text.startswith("-----BEGIN RSA PRIVATE KEY-----") and text.endswith("-----END RSA PRIVATE KEY-----"):',
    "AKIAIOSFODNN7 eyJhbGciOiJIUzI1NiJ9 ghp_short password = 'correct horse' PublicKeyToken=b77a5c561934e089",
    "<EMAIL> <PHONE> <IP> <CARD> <KEY>",
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_only_looks_like_personal_data_stays(text: str):
    assert replaced(text) == (text, {})


def test_addresses_that_are_nobodys_are_taken_on_demand():
    text = "me@example.com at 127.0.0.1, 192.168.1.1, 192.0.2.1, fe80::1 or 2001:db8::5:1, not 256.1.1.1"
    assert replaced(text, reserved=True) == (
        "<EMAIL> at <IP>, <IP>, <IP>, <IP> or <IP>, not 256.1.1.1",
        {"email": 1, "ip": 5},
    )


def test_the_check_digit():
    assert luhn("79927398713") and not luhn("79927398710")  # ISO/IEC 7812-1's own example


PIECES = st.sampled_from(
    [text for _, text, _ in FOUND] + NOT_FOUND + list(" \n.,:-+@<>(0189az") + ["\x00", "\ud800", "天"]
)


@given(st.lists(PIECES, max_size=8).map("".join), st.booleans())
def test_a_second_pass_finds_nothing_in_any_text(text: str, reserved: bool):
    clean, found = replaced(text, reserved=reserved)
    assert replaced(clean, reserved=reserved) == (clean, {})
    assert sum(clean.count(f"<{kind.upper()}>") for kind in TYPES) >= len(found)
    assert (clean == text) == (not found)


def test_time_grows_with_the_text_whatever_the_text():
    hostile = [
        "a", "a.", "a@", "a@a.", "@", "1", "1 ", "1-", "1.", "+1", "+1 ", "(", ":", "a:", "::", "0:", "key=", "key", "key-", "eyJ",
        "eyJaaaaaaaaaa.", "-----BEGIN PRIVATE KEY-----", "-----BEGIN ", "-", "xoxb-", "xoxb-a", "tel ", "tel 1", "0-", "01 02 ",
        "key='a1B2", "-----BEGIN PRIVATE KEY-----aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "\x00", "天", "a@b.co ", "4111111111111111 ",
    ]  # fmt: skip
    for piece in hostile:
        text = piece * (250_000 // len(piece))
        began = time.process_time()
        replaced(text)
        assert time.process_time() - began < 6, piece


def test_one_line_of_a_megabyte_is_quick():
    text = "ab1-cd.ef@gh:12 34 56.78+90_key=x9" * 30_000
    began = time.process_time()
    replaced(text)
    assert time.process_time() - began < 20


# --- the stage -------------------------------------------------------------------------------------------------------

TEXTS = {"mail": ["From jane@uni-ulm.de to joe@uni-ulm.de", "nothing here"], "code": [f"key = '{RANDOM}'  # 8.8.4.4"]}


def made(tmp_path: Path, **settings):
    documents = corpus(Store(str(tmp_path)), "corpus", TEXTS, part_rows=9)
    maker = PiiPart(PiiSettings(**settings), documents)
    maker.setup()
    (part,) = documents.parts
    return documents.read(part).to_pylist(), maker.make(part.range)


def test_documents_keep_their_ids_and_know_what_they_came_from(tmp_path: Path):
    before, content = made(tmp_path)
    assert content.table.schema == DOCUMENT_SCHEMA
    first, second, third = content.table.to_pylist()
    assert [row["id"] for row in content.table.to_pylist()] == [row["id"] for row in before]
    assert first["text"] == "From <EMAIL> to <EMAIL>" and json.loads(first["meta"]) == {"pii": {"email": 2}}
    assert first["key"] == content_key(first["text"].encode()) and first["parents"] == [before[0]["key"]]
    assert second == before[1]  # nothing found: the very same document
    assert third["text"] == "key = '<KEY>'  # 8.8.4.4"
    assert content.counts == {
        "mail/documents": 2, "mail/with any": 1, "mail/email": 2, "code/documents": 1, "code/with any": 1, "code/key": 1,
    }  # fmt: skip


def test_counting_leaves_texts_and_keys_alone(tmp_path: Path):
    before, content = made(tmp_path, action="count", types=("email",))
    first, second, third = content.table.to_pylist()
    assert (first["text"], first["key"], first["parents"]) == (before[0]["text"], before[0]["key"], [])
    assert json.loads(first["meta"]) == {"pii": {"email": 2}}
    assert [second, third] == before[1:]


def test_rules_and_personal_data_run_on_ray_part_by_part(ray_cluster, stage_context):
    documents = corpus(stage_context.store, "artifacts/corpus", TEXTS, part_rows=2)
    heuristics = Heuristics("rules", HeuristicsSettings(rules=("prose", "code")), 0)
    result = heuristics.run(stage_context(heuristics, documents=[documents]))
    assert {name: row["documents"] for name, row in result.metrics["would_fall"].items()} == {"mail": 2, "code": 1}
    assert result.metrics["would_fall"]["mail"]["word_count"] == 2
    pii = Pii("clean", PiiSettings(), 0)
    result = pii.run(stage_context(pii, documents=[documents]))
    assert result.metrics["found"] == {
        "mail": {"documents": 2, "with any": 1, "email": 2}, "code": {"documents": 1, "with any": 1, "key": 1},
    }  # fmt: skip
