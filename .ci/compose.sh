# The parts of .ci/compose, inside its namespaces.

# start_engine starts a docker engine that nobody else knows of.
start_engine() {
	mount -t tmpfs tmpfs /run
	busybox ip link set lo up
	echo '{}' >"$work/daemon.json"
	dockerd --config-file "$work/daemon.json" --data-root "$work/docker" --exec-root /run/docker --pidfile /run/docker.pid \
		--host "$DOCKER_HOST" >"$work/dockerd.log" 2>&1 </dev/null &
	engine=$!
	soon 60 "the docker engine" docker version
	ok "a docker engine of its own runs"
}

# busybox_in makes a root directory of the host's static busybox.
busybox_in() {
	mkdir -p "$1"/{bin,usr/bin,usr/local/bin,etc,tmp,run,proc,sys,dev,root,data,var/lib}
	cp "$(command -v busybox)" "$1/bin/busybox"
	local applet
	for applet in $(busybox --list); do
		[ "$applet" = busybox ] || ln -s /bin/busybox "$1/bin/$applet"
	done
	echo 'root:x:0:0:root:/root:/bin/sh' >"$1/etc/passwd"
	echo 'hosts: files dns' >"$1/etc/nsswitch.conf"
	chmod 1777 "$1/tmp"
}

# import ROOT IMAGE SETTING... makes an image of a root directory.
import() {
	local root=$1 image=$2 setting args=(-c 'ENV PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin')
	shift 2
	for setting; do args+=(-c "$setting"); done
	tar -C "$root" -c . | docker import "${args[@]}" - "$image" >/dev/null
	rm -r "$root"
}

# make_images makes the images of others that docker-compose.yml and Dockerfile name, of the same programs.
make_images() {
	local root=$work/root
	busybox_in "$root"
	cp "$work/bin/nats-server" "$root/usr/local/bin/"
	import "$root" nats:2.15-alpine 'CMD ["nats-server", "--config", "/etc/nats/nats-server.conf"]'

	busybox_in "$root"
	cp "$work"/bin/{buildkitd,buildctl,buildkitd-entrypoint,with-cgroupfs-remount} "$root/usr/bin/"
	cp "$(command -v runc)" "$root/usr/bin/buildkit-runc"
	ldd "$(command -v runc)" | awk '{for (i = 1; i <= NF; i++) if ($i ~ "^/") {print $i; break}}' |
		xargs -r cp -L --parents -t "$root"
	import "$root" moby/buildkit:v0.33.1 'ENTRYPOINT ["/usr/bin/buildkitd-entrypoint"]' 'VOLUME /var/lib/buildkit'

	# Its go hands out what this machine's go has made of the same arguments: compiling BuildKit takes minutes.
	busybox_in "$root"
	mkdir -p "$root/usr/local/go/bin" "$root/etc/ssl/certs"
	cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
	cp "$work/bin/kiln" "$root/usr/local/go/kiln"
	cat >"$root/usr/local/go/bin/go" <<-'END'
		#!/bin/sh
		set -e
		case "$CGO_ENABLED $*" in
		" mod download") test -s go.mod && test -s go.sum ;;
		"0 build -ldflags -s -w -X main.release= -o /image/usr/bin/kiln ./cmd/kiln")
			test -s cmd/kiln/main.go && mkdir -p /image/usr/bin && mv /usr/local/go/kiln /image/usr/bin/kiln ;;
		*) echo "go $* with CGO_ENABLED=$CGO_ENABLED is not known here" >&2 && exit 1 ;;
		esac
	END
	chmod +x "$root/usr/local/go/bin/go"
	import "$root" golang:1.26
	ok "images of others are made here"

	mkdir "$project"
	tar --exclude=./.git --exclude=./bin --exclude=./kiln --exclude=./dist --exclude=./secrets -c . | tar -C "$project" -x
	quiet make -C "$project" compose-secrets
	compose config --quiet || die "the compose file is not understood"
}

id_of() { docker ps --all --quiet --filter "label=com.docker.compose.service=$1"; }

healthy() {
	local service
	for service; do
		[ "$(docker inspect -f '{{.State.Health.Status}}' "$(id_of "$service")")" = healthy ] || { echo "$service is not healthy"; return 1; }
	done
}

bring_up() {
	down=1
	quiet compose up --build --detach
	soon 90 "health of all services" healthy nats server buildkit-1 buildkit-2 worker-1 worker-2
	export KILN_SERVER=http://localhost:7070 KILN_TOKEN
	KILN_TOKEN=$(compose exec -T server kiln token admin)
	quiet kiln doctor
	ok "the image is built ($(docker image inspect -f '{{.Size}}' kiln:devel | awk '{printf "%d", $1 / 1000000}') MB), and everything is up and healthy"
}

# crash SERVICE kills the process of a container, which docker is to start again: docker kill would be a wish.
crash() { kill -KILL "$(docker inspect -f '{{.State.Pid}}' "$(id_of "$1")")"; }

tear_down() {
	quiet compose down --volumes --timeout 10
	down=
	[ -z "$(docker ps --all --quiet)$(docker volume ls --quiet)$(docker network ls --quiet --filter type=custom)" ] ||
		die "containers, volumes or networks are left"
	! grep -e kiln-run -e "$work/docker/.*/executor" /proc/mounts || die "mounts are left"
	ok "down leaves nothing"
}

# task_runs prints the runs of the task: ID, status and trigger.
task_runs() { kiln task list-runs web | awk 'NR > 1 {print $1, $4, $5}'; }

# begun STATE N succeeds if the task has so many runs and the newest is in a state.
begun() {
	task_runs >"$work/runs"
	cat "$work/runs"
	[ "$(wc -l <"$work/runs")" -eq "$2" ] && [ "$(awk 'NR == 1 {print $2}' "$work/runs")" = "$1" ]
}

# worker_of prints the service of the worker that executes a run: workers are called as their hosts, and a bit more.
worker_of() { kiln show "$1" | awk '/^ATTEMPT/ {found = 1; next} found && NF == 0 {exit} found {name = $2} END {print substr(name, 1, 8)}'; }

# under_way N waits until run N of the task is where the gate keeps it.
under_way() {
	soon 90 "run $1 of the task" begun Running "$1"
	newest=$(awk 'NR == 1 {print $1}' "$work/runs")
	soon 90 "the gate of run $1" at_gate
}
at_gate() { kiln logs "$newest" | grep -q 'RUN sh /gate.sh$'; }

# A repository that builds wait for.
gate() {
	rm -rf "$work/repos/gate.git"
	[ "$1" = closed ] || git init --quiet --bare "$work/repos/gate.git"
}

# once N CAUSE waits until run N of the task has succeeded, and that there is no other.
once() {
	soon 180 "the end of run $1 of the task" begun Succeeded "$1"
	newest=$(awk 'NR == 1 {print $1}' "$work/runs")
	[ "$(awk 'NR == 1 {print $3}' "$work/runs")" = "$2" ] || die "run $newest: not by $2: $(cat "$work/runs")"
	if [ $((SECONDS - step)) -gt 40 ]; then # what took so long
		kiln show "$newest" | sed -n '/^ATTEMPT/,/^$/p' >&2
		compose logs --no-color --tail 8 nats server worker-1 worker-2 2>&1 | cut -c 1-240 >&2
	fi
	[ "$(kiln logs "$newest" | grep -c 'pushed localhost:7070/web:latest@')" -eq 1 ] || die "run $newest has not published once"
}

commit() {
	echo "$1" >"$work/web/greeting"
	git -C "$work/web" -c user.name=t -c user.email=t@example.com commit --quiet --all --message "say $1"
	quiet git -C "$work/web" push --quiet
}

# first_task is the front page's: an image, then a task that tests a program before it publishes it.
first_task() {
	cp -r examples/base "$work/base"
	examples/base/prepare.sh "$work/base"
	quiet kiln build -t base:latest -t base:1 "$work/base"
	kiln run examples/hello >"$work/hello" 2>"$work/out" || { tail -c 4000 "$work/out" >&2; die "kiln run examples/hello"; }
	grep -q '^localhost:7070/hello:.*@sha256:' "$work/hello" || die "kiln run printed $(cat "$work/hello")"
	quiet docker login --username ci --password-stdin localhost:7070 <<<"$KILN_TOKEN"
	[ "$(docker run --rm --network none "$(cat "$work/hello")" 2>>"$work/out")" = "Hello from kiln, world!" ] || die "the image does not run"
	ok "the first task, and docker runs what it has published"
}

# isolation has a service of one run and a stranger in another, on one daemon.
isolation() {
	local run daemon
	quiet compose stop --timeout 5 worker-2
	mkdir "$work/service" "$work/stranger"
	cat >"$work/service/acr-task.yaml" <<-'END'
		version: v1.1.0
		steps:
		  - id: web
		    cmd: $Registry/base:1 sh web.sh
		    detach: true
		  - id: friend
		    cmd: $Registry/base:1 sh friend.sh
	END
	cat >"$work/service/web.sh" <<-'END'
		mkdir /www
		ip addr | awk '/inet / && !/ 127/ {sub("/.*", "", $2); print $2}' >/www/addresses
		exec httpd -f -p 8080 -h /www
	END
	cat >"$work/service/knock.sh" <<-'END'
		# fetch ADDRESS PORT prints what a server says to a request.
		fetch() { printf 'GET /addresses HTTP/1.0\r\n\r\n' | timeout 2 nc "$1" "$2" 2>/dev/null; }
	END
	cat >"$work/service/friend.sh" <<-'END'
		. ./knock.sh
		web=$(awk '$2 == "web" {print $1}' /etc/hosts)
		until fetch "$web" 8080 | grep '^[0-9]' >addresses; do sleep 0.2; done
		for address in $(cat addresses); do fetch "$address" 8080 | grep -q '200 OK' && echo "friend reaches $address"; done
		sleep 60
	END
	cp "$work/service/knock.sh" "$work/stranger"
	cat >"$work/stranger/acr-task.yaml" <<-'END'
		version: v1.1.0
		steps:
		  - cmd: $Registry/base:1 sh stranger.sh
	END
	cat >"$work/stranger/stranger.sh" <<-'END'
		. ./knock.sh
		for address in $(cat addresses); do fetch "$address" 8080 | grep -q HTTP && echo "stranger reaches $address"; done
		fetch "$(cat nats)" 4222 | grep -q INFO && echo "stranger reaches NATS"
		fetch "$(cat server)" 7070 | grep -q HTTP && echo "stranger has a network"
		echo "stranger is done"
	END
	run=$(kiln run --no-wait "$work/service")
	soon 90 "a service and a friend" friends "$run"
	kiln logs "$run" | sed -n 's/.*friend reaches //p' >"$work/stranger/addresses"
	docker inspect -f '{{.NetworkSettings.Networks.kiln_control.IPAddress}}' "$(id_of nats)" >"$work/stranger/nats"
	docker inspect -f '{{.NetworkSettings.Networks.kiln_build.IPAddress}}' "$(id_of server)" >"$work/stranger/server"
	quiet kiln run "$work/stranger"
	grep -q 'stranger has a network' "$work/out" && grep -q 'stranger is done' "$work/out" || die "the stranger says $(cat "$work/out")"
	! grep 'stranger reaches' "$work/out" >&2 || die "runs are not isolated"
	daemon=$(worker_of latest)
	[ "$daemon" = "$(worker_of "$run")" ] || die "the runs were on two daemons"
	quiet kiln cancel "$run"
	quiet compose start worker-2
	rm -r "$work/service" "$work/stranger"
	ok "runs on one daemon are isolated from each other and from NATS"
}
friends() { [ "$(kiln logs "$1" | grep -c 'friend reaches')" -eq 2 ]; }

# follow makes a task that follows a repository and a base image of this machine.
follow() {
	local gateway hook
	gateway=$(docker network inspect -f '{{(index .IPAM.Config 0).Gateway}}' kiln_build)
	mkdir -p "$work/repos"
	git init --quiet --bare --initial-branch main "$work/repos/web.git"
	kiln hook create --provider generic --name compose >"$work/hook"
	awk '$1 == "secret" {print $2}' "$work/hook" >"$work/secret"
	hook=$(awk '$1 == "address" {print $2}' "$work/hook")
	gitserver -dir "$work/repos" -listen "$gateway:7071" -hook "$hook" -secret-file "$work/secret" >"$work/gitserver.log" 2>&1 </dev/null &
	soon 20 "a git server" git ls-remote "http://$gateway:7071/web.git"
	quiet git clone --quiet "http://$gateway:7071/web.git" "$work/web"
	git -C "$work/web" checkout --quiet -B main
	printf 'FROM localhost:7070/base:1\nCOPY . /\nRUN sh /gate.sh\n' >"$work/web/Dockerfile"
	cat >"$work/web/gate.sh" <<-END
		until printf 'GET /gate.git/HEAD HTTP/1.0\r\n\r\n' | timeout 3 nc $gateway 7071 2>/dev/null | grep -q '200 OK'; do sleep 0.2; done
	END
	echo hello >"$work/web/greeting"
	git -C "$work/web" add --all
	commit hello
	cat >"$work/task.yaml" <<-END
		apiVersion: kiln/v1
		kind: Task
		name: web
		context: http://$gateway:7071/web.git#main
		step: {build: {images: ["web:{{.Run.ID}}", "web:latest"]}}
		triggers:
		  source: [{}]
		  baseImage: {quiet: 1s}
	END
	quiet kiln apply -f "$work/task.yaml"
	[ -z "$(task_runs)" ] || die "a task runs because it is made"
}

# faults kills every part while a fact becomes a run, and expects one run of each fact.
faults() {
	local daemon
	commit "worker and NATS die"
	under_way 1
	crash "$(worker_of "$newest")"
	crash nats
	gate open
	once 1 commit
	kiln show "$newest" | grep -q ' lost: ' || die "run $newest has lost no attempt"
	ok "a signed push: one run, though its worker and NATS were killed under way"

	gate closed
	quiet kiln build --no-cache -t base:1 "$work/base"
	under_way 2
	daemon=$(worker_of "$newest")
	crash "buildkit-${daemon#worker-}"
	crash server
	gate open
	once 2 base-image
	ok "a new base image: one run, though its build daemon and the server were killed under way"

	soon 90 "health of all services" healthy nats server buildkit-1 buildkit-2 worker-1 worker-2
	quiet kiln reconcile
	commit "all is well again"
	once 3 commit
	! compose logs --no-color nats 2>&1 | grep Violation | head -n 3 | cut -c 1-300 >&2 || die "somebody lacks a permission in NATS"

	ok "everything has recovered: a further push, one further run"
}
