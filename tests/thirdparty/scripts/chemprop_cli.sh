# The command line of chemprop, as in its documentation; it makes its Trainer itself.
set -eu
python - << 'END'
chains = ["C" * n + end for n in range(1, 25) for end in ("", "O", "N", "Cl", "C(=O)O")]
rows = [f"{smiles},{len(smiles) + 3.0 * ('O' in smiles)}" for smiles in chains]
open("molecules.csv", "w").write("\n".join(["smiles,weight", *rows, ""]))
END
chemprop train --data-path molecules.csv --task-type regression --output-dir trained \
    --message-hidden-dim 32 --ffn-hidden-dim 16 --epochs 10 --batch-size 16 --dropout 0.1 \
    --pytorch-seed 0 --accelerator cpu --ensemble-size 2
chemprop predict --test-path molecules.csv --accelerator cpu --preds-path predictions.csv \
    --model-paths trained/model_0/best.pt trained/model_1/best.pt
python - << 'END'
import torch
from results import report

models = [torch.load(f"trained/model_{i}/best.pt", weights_only=False) for i in (0, 1)]
report(
    weights=[model["state_dict"] for model in models],
    predictions=open("predictions.csv").read(),
)
END
