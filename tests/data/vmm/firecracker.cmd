firecracker --id web --api-sock /run/firecracker/web.socket --config-file /srv/web.json --level Info
