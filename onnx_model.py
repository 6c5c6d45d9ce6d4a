def load(path, device):
    raise NotImplementedError
