"""Small clients of the tests' own, each with other methods to get, set and delete."""


class Client:
    """Has only the methods that it is given."""

    def __init__(self, **methods):
        self.__dict__.update(methods)


class Items:
    """Item access and nothing else."""

    def __init__(self, kept=None):
        self.kept = {} if kept is None else kept

    def __getitem__(self, key):
        return self.kept[key]

    def __setitem__(self, key, value):
        self.kept[key] = value


class ItemsWithDelete(Items):
    def __delitem__(self, key):
        del self.kept[key]


class GetPut:
    def __init__(self):
        self.kept = {}

    def get(self, key):
        return self.kept[key]

    def put(self, key, value):
        self.kept[key] = value


def save(store, *names, content="content", ttl=None):
    """Save sessions under these names, as handlers would."""
    for name in names:
        lease, _ = store.open([name])
        store.commit(lease, [(name, content, ttl)])
