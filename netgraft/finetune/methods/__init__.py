"""One fine-tuning method per file; ``netgraft.finetune.protocol`` says how to write one."""
