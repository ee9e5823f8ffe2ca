package buildkit_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"kiln/internal/event"
	"kiln/internal/solve"
)

// testShape has a container look at what its options have made of it.
func testShape(t *testing.T, e *env) {
	s := e.open(t, solve.SessionConfig{})
	c := e.shell(`hostname; grep -c 127.0.0.1.*box.test /etc/hosts
touch /new 2>/dev/null || echo read-only; touch /workspace/new /acb/home/new /scratch/new && echo writable
touch /locked/new 2>/dev/null || echo locked
grep ' /scratch ' /proc/mounts | busybox cut -d' ' -f3,4; busybox df -m /dev/shm | busybox awk 'END{print $2}'; ls -ld /dev/shm | busybox cut -c1-10
ulimit -n; ulimit -Hn; id -G; grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status
grep -v '^#' /etc/resolv.conf | grep .; ls -l /etc/resolv.conf | busybox cut -c1-10; env | grep -c KILN`)
	c.Tmpfs = []solve.Tmpfs{{Path: "/scratch", Options: []string{"size=65536", "mode=0711", "suid", "noexec"}}, {Path: "/locked", ReadOnly: true}}
	c.Options = solve.Options{ReadOnly: true, Hostname: "box.test", ShmSize: 7 << 20, Ulimits: []solve.Ulimit{{Name: "nofile", Soft: 77, Hard: 99}, {Name: "rtprio", Soft: 9, Hard: 9}},
		Groups: []string{"4321", "bob"}, Capabilities: []string{"CAP_CHOWN"}, NoNewPrivileges: true,
		Nameservers: []string{"192.0.2.53"}, Search: []string{"a.test", "b.test"}, Resolver: []string{"ndots:3"}}
	code, j := runStep(t, s, c)
	want := `box.test
1
read-only
writable
locked
tmpfs rw,nosuid,noexec,relatime,size=64k,mode=711
7
drwxrwxrwt
77
99
0 1000 4321
CapEff:	0000000000000001
CapBnd:	0000000000000001
NoNewPrivs:	1
nameserver 192.0.2.53
search a.test b.test
options ndots:3
-rw-r--r--
0
`
	if got := j.text(event.StreamStdout); code != 1 || got != want { // grep has found nothing
		t.Errorf("code %d\n%s\nwant\n%s", code, j.all(), want)
	}
	c = e.shell("for i in $(seq 80); do sleep 60 & done; echo forked")
	c.Options = solve.Options{Pids: 40, CPUSet: "0", CPUShares: 1 << 18}
	if _, j := runStep(t, s, c); strings.Contains(j.text(event.StreamStdout), "forked") || !strings.Contains(j.all(), "can't fork") {
		t.Errorf("eighty processes of forty: %s", j.all())
	}
	setting := func(o solve.Options) string {
		c := e.shell("cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shmmni")
		c.Options = o
		_, j := runStep(t, s, c)
		return j.text(event.StreamStdout)
	}
	before := setting(solve.Options{})
	if got := setting(solve.Options{Sysctls: map[string]string{"net.core.somaxconn": "77", "kernel.shmmni": "78", "vm.swappiness": "1"}}); got != "77\n78\n" {
		t.Errorf("settings of the kernel: %q", got)
	}
	if got := setting(solve.Options{}); got != before {
		t.Errorf("a container after that has %q, before %q", got, before)
	}
	db := e.web("db")
	db.Options.Names = []string{"also_db", "bad name"}
	d := serve(t, s, db)
	if _, j := runStep(t, s, e.shell("grep also_db /etc/hosts | grep -v bad | grep -c db; grep -c bad /etc/hosts")); j.text(event.StreamStdout) != "1\n0\n" {
		t.Errorf("further names of a service: %s", j.all())
	}
	d.stop(errors.New("enough"))
	<-d.ended
	c = e.shell("true")
	c.Options.Groups = []string{"nobody"}
	if _, err := s.Run(t.Context(), c, newJournal().log); err == nil || !strings.Contains(err.Error(), `group "nobody" is not in /etc/group of image`) {
		t.Error(err)
	}
}

// testStop ends containers that want another signal than SIGTERM, or more time than others.
func testStop(t *testing.T, e *env) {
	s := e.open(t, solve.SessionConfig{})
	why := errors.New("stop it")
	for _, c := range []struct {
		options solve.Options
		script  string
		want    string
	}{
		{solve.Options{StopSignal: "SIGINT", StopTimeout: time.Hour}, "trap 'echo got INT; exit' INT; echo up; while :; do sleep 0.05; done", "up\ngot INT\n"},
		{solve.Options{StopSignal: "usr1", StopTimeout: time.Hour}, "echo up; sleep 86399.321; echo no", "up\n"},
		{solve.Options{StopTimeout: -1}, "trap '' TERM; echo up; while :; do sleep 0.05; done", "up\n"},
	} {
		container := e.shell(c.script)
		container.Options = c.options
		d := serve(t, s, container)
		d.stop(why)
		if err := <-d.ended; !errors.Is(err, why) {
			t.Errorf("%+v: %v", c.options, err)
		}
		if got := d.text(event.StreamStdout); got != c.want {
			t.Errorf("%+v: it said %q, want %q", c.options, got, c.want)
		}
	}
}

// testShares has containers share directories by name, which begin with what their first image has there.
func testShares(t *testing.T, e *env) {
	s := e.open(t, solve.SessionConfig{})
	c := e.shell("ls /tmp; echo one > /tmp/x; ls /empty; echo own > /own/y")
	c.Shares = []solve.Share{{Name: "v", Path: "/tmp"}, {Name: "w", Path: "/empty", Empty: true}, {Path: "/own"}}
	if code, j := runStep(t, s, c); code != 0 {
		t.Fatal(j.all())
	}
	c = e.shell("cat /v/x; ls /w /own; echo no > /w/z")
	c.Shares = []solve.Share{{Name: "v", Path: "/v"}, {Name: "w", Path: "/w", ReadOnly: true}, {Path: "/own"}}
	code, j := runStep(t, s, c)
	if got := j.text(event.StreamStdout); code == 0 || got != "one\n/own:\n\n/w:\n" && got != "one\n/w:\n\n/own:\n" || !strings.Contains(j.all(), "Read-only") {
		t.Errorf("code %d\n%s", code, j.all())
	}
	c = e.shell("ls /bin/sh; echo > /bin/new; head -1 /etc/group; echo > /etc/new")
	c.Shares = []solve.Share{{Name: "image", Path: "/bin"}, {Path: "/etc"}}
	if code, j := runStep(t, s, c); code != 0 || !strings.HasPrefix(j.text(event.StreamStdout), "/bin/sh\nroot:") {
		t.Errorf("of the image: code %d\n%s", code, j.all())
	}
	c = e.shell("ls /again/sh /again/new; ls /bin/new /etc/new")
	c.Shares = []solve.Share{{Name: "image", Path: "/again"}}
	if code, j := runStep(t, s, c); code == 0 || j.text(event.StreamStdout) != "/again/new\n/again/sh\n" {
		t.Errorf("a second time: code %d\n%s", code, j.all())
	}
	other := e.open(t, solve.SessionConfig{})
	c = e.shell("ls /v/x")
	c.Shares = []solve.Share{{Name: "v", Path: "/v"}}
	if code, j := runStep(t, other, c); code == 0 {
		t.Errorf("another run sees it: %s", j.all())
	}
}
