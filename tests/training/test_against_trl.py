"""TRL on the same conversations and pairs: the tokens that SFT learns from, and DPO's loss and gradients."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpus import preference_documents, python_documents

from hornbook.artifact import Artifact
from hornbook.chat import Message, chat_meta
from hornbook.documents import canonical_json
from hornbook.scores import ScoreFilter
from hornbook.store import Store
from training.chat_templates import TEMPLATES, TemplateName
from training.loader import inputs_and_targets
from training.loss import IGNORED
from training.pack import PackPart, PackSettings
from training.preference_model import PreferenceModel
from training.presets import build_model, model_config
from training.shards import ShardBuilder, TokenSource, write_shard_folder
from training.tokenizer import as_hugging_face, train_bpe

trl = pytest.importorskip("trl") if False else None
