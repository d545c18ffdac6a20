"""Train vision-language models to write radiology reports whose findings are right.

`mrg` implements MRG-R1 (Wang, Ye, Naseem, Kim, arXiv 2512.16145): GRPO on a report-level clinical reward, the margin
CheXbert cosine similarity, with PyTorch Lightning. Start with `python -m mrg demo`; for the metrics alone use
`from mrg.metrics import CEF1, MCCS`.
"""

__version__ = "0.1.0"
