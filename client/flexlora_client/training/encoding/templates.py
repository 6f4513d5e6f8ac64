"""The named prompt formats, as chat templates in transformers' dialect of Jinja."""

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content }}"
    "{{ assistant_end if message.role == 'assistant' else '<|im_end|>' }}{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# the two prompts of tatsu-lab/stanford_alpaca, train.py; an instruction's context is a turn of the role `input`
ALPACA = (
    "{% set contexts = messages | selectattr('role', 'equalto', 'input') | list %}"
    "{% if contexts %}"
    "{{ 'Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\\n\\n' }}"
    "{% else %}"
    "{{ 'Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\\n\\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{% if message.role == 'user' %}{{ '### Instruction:\\n' + message.content + '\\n\\n' }}"
    "{% elif message.role == 'input' %}{{ '### Input:\\n' + message.content + '\\n\\n' }}"
    "{% else %}{{ '### Response:' + message.content + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:' }}{% endif %}"
)
