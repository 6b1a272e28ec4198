"""The proxies that can be measured, one file each."""

from loadtest.job import Proxy
from loadtest.peers import ambassador, envoy, haproxy, nginx

PROXIES: tuple[Proxy, ...] = (ambassador.PROXY, envoy.PROXY, haproxy.PROXY, nginx.PROXY)
