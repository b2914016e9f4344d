# GPT-2 XL's size on FineWeb, in GPT-2's vocabulary, 0.8M tokens a step, the model dealt out to eight GPUs (FSDP).
#     python data/fineweb/prepare.py                                # the whole sample, 10 billion tokens
#     torchrun --nproc_per_node=8 train.py config/gpt2_1.5b_fsdp.py
#     torchrun --nnodes=2:4 --nproc_per_node=8 --max-restarts=9 --rdzv-backend=c10d --rdzv-endpoint=HOST:29400 \
#         train.py config/gpt2_1.5b_fsdp.py --resume=auto           # goes on by itself after a node is lost
# Where memory is short: --micro_batch_size=4 --checkpoint_activations.
#
# Not measured here, nor are the rates, which are those of the smallest size. nanoGPT with FSDP (its pull request 632)
# reports a loss of 2.71 on OpenWebText after 14.5 hours of 32 H200; GPT-2 XL as published has 2.54 there.
data = "fineweb"
out_dir = "out/gpt2_1.5b"
parallel = "fsdp"
max_steps = 12700  # 10 billion tokens, the sample once

n_layer = 48
n_head = 25
n_embd = 1600
block_size = 1024
batch_size = 768  # divides among 8, 16, 24 and 32 GPUs
micro_batch_size = 8
lr = 0.01
embed_lr = 0.1
muon_lr = 0.02
eval_interval = 250
eval_tokens = 1048576
