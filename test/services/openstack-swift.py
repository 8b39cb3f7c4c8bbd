"""openstack-swift.py ADDRESS DIR: an OpenStack Swift in one process, for tests.

OpenStack's own account, container, object and proxy servers, with one replica below the directory DIR and what they would keep in
memcached in memory. They are more patient than by default, where half a second without a connection is a failure, ten failures shut the
only replica out for a minute, and a listing that takes a second to be told of an object learns of it later, from a daemon that is not
here. The middleware is that of Swift's sample configuration as far as clients see it, but a manifest of a large object names 10 segments
at most, so that a test needs few bytes for a manifest of manifests. Log in at /auth/v1.0 as test:tester with key testing, who owns the
account, or as test:reader with key reading, who may do nothing of himself.
"""

import os
import sys
import time

import eventlet

eventlet.patcher.monkey_patch(all=False, socket=True, select=True, thread=True, time=True)

from eventlet import wsgi
from swift.account.server import AccountController
from swift.common import utils
from swift.common.http_protocol import SwiftHttpProtocol
from swift.common.ring import RingBuilder
from swift.common.wsgi import loadapp
from swift.container.server import ContainerController
from swift.obj.server import ObjectController

PROXY = """
[pipeline:main]
pipeline = catch_errors healthcheck listing_formats bulk tempauth copy slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
conn_timeout = 60
node_timeout = 60
error_suppression_limit = 1000000
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
max_manifest_segments = 10
[filter:dlo]
use = egg:swift#dlo
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
user_test_reader = reading
"""


class Cache:
    """What Swift asks of memcached."""

    def __init__(self):
        self.items = {}

    def get(self, key, **_):
        value, end = self.items.get(key, (None, 0))
        return value if not end or time.time() < end else None

    def set(self, key, value, time=0, **_):
        self.items[key] = (value, end_of(time))

    def incr(self, key, delta=1, time=0, **_):
        value = max(0, int(self.get(key) or 0) + delta)
        self.set(key, value, time=time)
        return value

    def decr(self, key, delta=1, time=0, **_):
        return self.incr(key, -delta, time)

    def delete(self, key, **_):
        self.items.pop(key, None)

    def set_multi(self, mapping, server_key, time=0, **_):
        self.set(server_key, mapping, time=time)

    def get_multi(self, keys, server_key, **_):
        values = self.get(server_key) or {}
        return [values.get(key) for key in keys]


def end_of(seconds):
    return time.time() + seconds if seconds else 0


def main(address, directory):
    host, port = address.rsplit(":", 1)
    devices = os.path.join(directory, "devices")
    os.makedirs(os.path.join(devices, "d1", "tmp"))
    utils.HASH_PATH_SUFFIX = utils.HASH_PATH_PREFIX = b"test"
    log = utils.NullLogger()
    settings = {"devices": devices, "swift_dir": directory, "mount_check": "false", "fallocate_reserve": "0", "disable_fallocate": "true",
                "bind_ip": "127.0.0.1", "log_name": "swift", "conn_timeout": "60", "node_timeout": "60", "container_update_timeout": "60"}

    def serve(listener, app):
        return eventlet.spawn(wsgi.server, listener, app, log, protocol=SwiftHttpProtocol, log_output=False)

    for kind, server in ("account", AccountController), ("container", ContainerController), ("object", ObjectController):
        listener = eventlet.listen(("127.0.0.1", 0))
        ring = RingBuilder(4, 1, 0)
        ring.add_dev({"id": 0, "region": 1, "zone": 1, "weight": 1.0, "ip": "127.0.0.1", "port": listener.getsockname()[1], "device": "d1"})
        ring.rebalance()
        ring.get_ring().save(os.path.join(directory, kind + ".ring.gz"))
        conf = dict(settings, bind_port=str(listener.getsockname()[1]))
        serve(listener, server(conf))
    conf = os.path.join(directory, "proxy.conf")
    with open(conf, "w") as f:
        f.write("[DEFAULT]\nswift_dir = %s\n%s" % (directory, PROXY))
    proxy, cache = loadapp(conf, global_conf={"log_name": "swift"}), Cache()

    def with_cache(env, start_response):
        env["swift.cache"] = cache
        return proxy(env, start_response)

    serve(eventlet.listen((host, int(port)), backlog=128), with_cache).wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
