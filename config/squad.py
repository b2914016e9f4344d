# SQuAD v1.1: find the answer in a paragraph of Wikipedia. From an encoder with embeddings for pairs of tokens and an
# output head of its own:
#     python train.py config/wikitext_bert_ngram.py --tie_head=false --embed_lr=0.03 --out_dir=out/own_ngram
#     python finetune.py config/squad.py --seeds=1,2,3
# Seen with 7,617 training questions, on the 10,570 questions of the development set: F1 0.385, 0.381, 0.400 and exact
# 0.257, 0.250, 0.275, from such an encoder trained for 32 minutes on one core (2,001 steps), when AdamW still trained
# the table of pairs; by these commands F1 0.380 and exact 0.253 (seed 1, AdamW, 44 minutes of a busy core). The
# sentence that shares most words with the question: F1 0.185.
data = "squad"
init_from = "out/own_ngram"
out_dir = "out/squad"

max_length = 256
doc_stride = 128
match_types = "true"
batch_size = 16
epochs = 3
eval_interval = 210
optimizer = "muon"
muon_lr = 0.005
lr = 1e-3
embed_lr = 0.01
head_lr = 0.01
token_mask = 0.1
dropout = 0.0
average = 0.99
