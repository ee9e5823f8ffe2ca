package taskspec

import (
	"fmt"
	"strings"
	"testing"
)

// tenSteps is a task like those that people write.
const tenSteps = `version: v1.1.0
# Builds, tests and publishes two images.
env: [CI=true]
steps:
  - id: build-web
    build: -t $Registry/web:$ID -f web/Dockerfile --build-arg VERSION=$ID .
    when: ["-"]
  - id: build-api
    build: -t $Registry/api:$ID -f api/Dockerfile --build-arg VERSION=$ID .
    when: ["-"]
  - id: web
    cmd: $Registry/web:$ID
    detach: true
    when: [build-web]
  - id: api
    cmd: $Registry/api:$ID
    detach: true
    when: [build-api]
  - id: wait
    cmd: bash -c 'for i in 1 2 3; do echo waiting; sleep 1; done'
    when: [web, api]
  - id: test
    cmd: curl --retry 5 http://web/health
    retries: 3
    retryDelay: 2
  - id: load
    cmd: $Registry/tools/load:1 --target http://api --rate 10
    timeout: 1200
    env: ["LABEL='run {{.Run.ID}}'"]
  - push: ["$Registry/web:$ID", "$Registry/api:$ID"]
  - build: -t $Registry/docs:$ID docs
    workingDirectory: site
  - push: [$Registry/docs:$ID]
`

func BenchmarkParseTenSteps(b *testing.B) {
	opt := testOptions()
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Parse([]byte(tenSteps), opt); err != nil {
			b.Fatal(err)
		}
	}
}

// manySteps returns a task of n steps.
func manySteps(n int) string {
	var b strings.Builder
	b.WriteString("version: v1.1.0\nsteps:\n")
	for i := range n {
		fmt.Fprintf(&b, "- id: step%d\n  cmd: bash -c 'echo $ID > out/%d.txt'\n  env: [\"N=%d\"]\n  when: [\"-\"]\n", i, i, i)
	}
	return b.String()
}

func BenchmarkParseThousandSteps(b *testing.B) {
	src, opt := []byte(manySteps(1000)), testOptions()
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Parse(src, opt); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHostile(b *testing.B) {
	opt := testOptions()
	for name, src := range hostile {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _, _ = Parse([]byte(src), opt)
			}
		})
	}
}
