"""A Bradley-Terry reward model fine-tuned from a Hugging Face checkpoint on your own preference data.

  python -m experiments.train_reward --config=configs/bradley_terry.py --workdir=DIR \
    --config.model.path=HF_DIR --config.data.train=FILE --config.data.eval=FILE

Base of the other reward-model configs, which change some of its leaves.
Reference: Ouyang et al., InstructGPT (2022), section 3.5.
"""

import ml_collections


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is not used."""
  del arg
  config = ml_collections.ConfigDict()
  config.system = 'bradley_terry'  # one of docs/systems.md
  config.program = 'train_reward'
  config.seed = 0

  config.model = dict(
    path='',  # Hugging Face directory to start from; '' starts from scratch with the sizes in `decoder`
    decoder=dict(hidden_size=128, intermediate_size=344, num_layers=4, num_heads=4, num_kv_heads=4),
    dtype='bfloat16',  # of matrix products; parameters, norms, rewards and losses are float32
    remat='full',
    head=dict(name='rmjax.heads.scalar:ScalarHead', init_scale=1.0),
    lora=dict(rank=0, alpha=16.0, modules='.*/(query|key|value|output|gate|up|down)$'),  # rank 0: train the weights themselves
  )
  config.losses = dict(
    preference=dict(name='rmjax.losses.preference:preference_cross_entropy', per='comparison', weight=1.0),
    centering=dict(name='rmjax.losses.preference:centering', per='comparison', weight=0.0),  # 0.01 holds rewards near 0
    rating=dict(name='rmjax.losses.pointwise:rating_squared_error', per='rating', weight=0.0),  # for data that is rated, not compared
  )

  config.data = dict(
    train='',  # files, separated by commas; '' takes `world`
    eval='',
    mixture='',  # weights of the parts of `train`, separated by commas: shares of the records read; '' reads every record as often as any other
    columns='',  # 'ours=theirs' pairs, separated by commas
    tokenizer='',  # directory; '' is model.path
    max_length=1024,  # tokens of prompt and response together
    text_prompts='plain',  # or 'chat', which reads a prompt that is text as the user's message
    too_long='truncate',  # or 'refuse'; either way they are counted in the result
    bad_rows='strict',  # or 'lenient', which counts them and goes on
    suffix='',  # text after each response, in place of the end-of-text token: '\nScore:' for a head that reads the next token
    layout='branch',  # responses that are blind to one another; or 'chain', each after the one before, in an order that every reading draws anew
    separator='',  # text between the responses of a chain
    orders=1,  # of its responses that the evaluation has each record in: see rmjax.evaluation.orders
    shards=1,  # parts of a batch's rows, each filled from its own share of the records; a multiple of the processes that train together
    levels=0,  # number of quality levels that the label `quality` has; comparisons that contradict them are taken out and counted
  )
  config.world = dict(name='')
  config.parts = dict()  # further networks, of the lengths of responses, each with its optimiser: see fimi.py

  # A batch is rows x length tokens, in which as many trees are packed as fit.
  config.train = dict(
    steps=1000, rows=8, length=2048, slots=8, responses=2, accumulate=1, log_every=10, eval_every=200, save_every=200, best='eval_accuracy', keep=1,
    moves=dict(name=''),  # import path of a function step -> which parts move, with its options; '' moves all
  )  # fmt: skip
  config.optimizer = dict(
    name='optax:adamw',
    learning_rate=1e-5,
    schedule='cosine',
    warmup=0.03,
    final=0.1,
    clip=1.0,
    decay='(kernel|embedding)$',
    freeze='',
    options=dict(b1=0.9, b2=0.95, weight_decay=0.0),
  )
  config.evaluation = dict(
    measures=('rmjax.evaluation.summary:summary',),  # functions of the scored records
    validation=0,  # so many of the evaluation's records are set aside to fit `correction` on
    correction=dict(name=''),  # function of the validation records that gives one of scored records, such as a tuned length penalty
  )
  config.seeds = (0, 1, 2, 3, 4)
  config.arms = dict(base=())  # what `reproduce` compares: overrides of this config
  config.claims = ()  # (left, relation, right, what the paper reports)
  config.mesh = dict(data=1, fsdp=-1, tensor=1, sequence=1)
  config.wandb = ml_collections.config_dict.placeholder(str)  # project name, if wandb is installed and wanted
  return config
