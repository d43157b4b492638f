"""transformers' BERT loads what we write for it and gives the features of the in-house text encoder."""

from __future__ import annotations

import torch

from tests.peers.comparison import Results, load, needs
from tests.peers.conversion import Official
from tests.peers.packages import package

pytestmark = needs("transformers")


def test_its_last_layer_is_ours(official: Official, results: Results) -> None:
    bert = package("transformers.models.bert.modeling_bert")

    net = load(bert.BertModel(bert.BertConfig(), add_pooling_layer=False), official.converted("transformers-bert"))
    input_ids = torch.randint(30522, (2, 256), generator=torch.Generator().manual_seed(0))
    attended = torch.arange(256) < torch.tensor([[256], [40]])
    found = net(input_ids=input_ids, attention_mask=attended.long()).last_hidden_state
    expected = official.glip.text_encoder(input_ids, attended).hidden
    results.equal("transformers", "BertModel", official.name, "last layer, 2 x 256 tokens", [found], [expected])
