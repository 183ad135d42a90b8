"""What happens, in which order. A flow reads like the sentence you would tell an operator; it calls tasks only."""
