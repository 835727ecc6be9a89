/usr/bin/firecracker --no-seccomp --config-file=/srv/web.json
