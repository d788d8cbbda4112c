"Judges in a file of their own, as a user writes them."
from dpo_nb import Judge, score

def short(instruction, response):
    "Short answers that say something; none of its business is what says nothing."
    return -len(response.text) if response.text.strip() else None

class Likely(Judge):
    "Asks the model that is in memory."
    name, loaded = "likely", []
    def __init__(self, lm): self.lm = lm; self.loaded.append(lm)
    def score(self, groups):
        for i, responses in groups:
            found = score(self.lm, [i.messages] * len(responses), [r.text for r in responses])
            yield [s.logp / s.n_tokens for s in found], {}
