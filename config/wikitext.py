# WikiText-2, word level: a GPT of 4 layers x 256 on 8,192 BPE tokens, 20 minutes on 2 cores.
# Seen on the test set after 1,762 steps, 17 minutes of one core of a processor with AMX: 1.344 bits per byte and a
# perplexity of 118 per word. With an output head of its own (--tie_head=false) two cores of it had 1.331 and 112 after
# 20 minutes, 2,815 steps; 1,762 steps gave 1.357 and 123.
data = "wikitext"
out_dir = "out/wikitext"
max_minutes = 20

n_layer = 4
n_head = 4
n_embd = 256
tie_head = True
block_size = 256
batch_size = 16
lr = 0.003
embed_lr = 0.03
eval_interval = 200
