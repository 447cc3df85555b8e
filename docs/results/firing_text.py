"""Print the validation tokens on which latents fire most strongly, in their context.

python docs/results/firing_text.py RUN LATENT,... [CONTEXTS]    # run in the folder that the run was made in
"""

import sys
from pathlib import Path

import torch

from sae_cli.dictionary.artifact import load_sae
from sae_cli.runs.directory import RunDirectory
from sae_cli.sources.language_model import LanguageModel

SHOWN, BEFORE, AFTER = 4, 8, 3

run, ids = Path(sys.argv[1]), [int(word) for word in sys.argv[2].split(",")]
wanted = int(sys.argv[3]) if len(sys.argv) > 3 else 128
config, sae = RunDirectory(run).config, load_sae(run)
model = LanguageModel(config.model, "cpu")
tokens, latents = [], []
with torch.no_grad():
    for batch in model.contexts(config.text, "validation"):
        x_CTD = model.read(batch.tokens_CT, [config.model.hook])[config.model.hook]
        acts_CTN = sae.encode(x_CTD.float().flatten(0, 1))[:, ids].view(*x_CTD.shape[:2], -1)
        acts_CTN[:, 0] = 0  # BOS, which the SAE was not trained on
        tokens.append(batch.tokens_CT)
        latents.append(acts_CTN)
        if sum(map(len, tokens)) >= wanted:
            break
tokens_CT, acts_CTN = torch.cat(tokens), torch.cat(latents)
T = tokens_CT.shape[1]
for column, latent in enumerate(ids):
    acts = acts_CTN[..., column]
    print(f"latent {latent}: fires on {100 * (acts != 0).float().mean():.2f} % of tokens")
    best_of_context_C = acts.max(dim=1).values
    for context in best_of_context_C.topk(SHOWN).indices.tolist():
        at = int(acts[context].argmax())
        words = [model.tokenizer.decode([token]) for token in tokens_CT[context].tolist()]
        text = "".join(words[max(1, at - BEFORE) : at]), words[at], "".join(words[at + 1 : at + 1 + AFTER])
        print(f"  {float(acts[context, at]):6.2f}  {text[0]!r} >>{text[1]!r}<< {text[2]!r}")
