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

// hostile are documents that try to cost more than their size.
var hostile = map[string]string{
	"long list":        "steps:\n" + strings.Repeat("- a\n", maxSource/4-10),
	"many keys":        strings.Repeat("a: b\n", maxSource/5),
	"distinct keys":    manyKeys(maxSource / 10),
	"flow list":        "steps: [" + strings.Repeat("a,", maxSource/2-10) + "]",
	"flow maps":        "steps: [" + strings.Repeat("{},", maxSource/3-10) + "]",
	"deep flow":        strings.Repeat("[", maxSource),
	"deep list":        strings.Repeat("- ", maxSource/2),
	"deep maps":        deepMaps(1400),
	"question marks":   strings.Repeat("? ", maxSource/2),
	"open quote":       `a: "` + strings.Repeat("x\n", maxSource/2-10),
	"comments":         strings.Repeat("a: b #\n", maxSource/7),
	"comment lines":    strings.Repeat("#\n", maxSource/2),
	"colons":           strings.Repeat(":", maxSource),
	"anchors":          strings.Repeat("- &a b\n", maxSource/7),
	"billion laughs":   laughs(),
	"merge bomb":       mergeBomb(),
	"aliases":          "version: v1.1.0\nalias:\n  values:\n    a: " + strings.Repeat("x", 100_000) + "\nsteps:\n" + strings.Repeat("- cmd: $a\n", 50_000),
	"dollars":          "version: v1.1.0\nsteps:\n" + strings.Repeat("$", maxSource-100),
	"unknown aliases":  "version: v1.1.0\nsteps:\n" + strings.Repeat("$x", maxSource/2-100),
	"actions":          strings.Repeat("{{.a}}", maxSource/6),
	"parentheses":      "{{" + strings.Repeat("(", maxSource-10) + "}}",
	"nested loops":     "{{range until 1000}}{{range until 1000}}x{{end}}{{end}}",
	"empty loop":       "{{range 1000000000}}{{end}}",
	"recursion":        `{{define "a"}}{{template "a"}}{{end}}{{template "a"}}`,
	"self recursion":   `{{template "task"}}`,
	"doubling":         `{{$x := "xxxxxxxx"}}{{range until 60}}{{$x = print $x $x}}{{end}}`,
	"replace":          `{{replace "" "` + strings.Repeat("x", 400_000) + `" "` + strings.Repeat("y", 400_000) + `"}}`,
	"wide printf":      `{{printf "%999999999d" 1}}`,
	"printf arguments": `{{$s := repeat 100000 "x"}}{{printf "` + strings.Repeat("%[1]s", 100_000) + `" $s}}`,
	"regular program":  `{{regexMatch "` + strings.Repeat("a{999}", 170) + `" "x"}}`,
	"regular text":     `{{regexMatch "(x+x+)+y" (repeat 1000000 "x")}}`,
	"shared lists":     `{{$x := list 1 2}}{{range until 60}}{{$x = list $x $x}}{{end}}{{$x}}`,
	"mutual dicts":     `{{$a := dict}}{{$b := dict "a" $a}}{{$_ := set $a "b" $b}}{{$a}}`,
	"late dicts":       lateDicts(),
	"indent":           `{{indent 2000000000 "x"}}`,
	"negative repeat":  `{{repeat -1 "x"}}`,
	"until step":       `{{untilStep 0 2000000000 1}}`,
	"seq":              `{{seq 1 2000000000}}`,
	"uniq":             `{{uniq (until 100000)}}`,
	"words":            "steps:\n- cmd: " + strings.Repeat("a ", maxSource/2-100),
	"flags":            "steps:\n- build: " + strings.Repeat("-t a ", maxSource/5-100),
	"bad flags":        "steps:\n- cmd: " + strings.Repeat("-v a ", maxSource/5-100) + "img",
	"env":              "steps:\n- cmd: img\n  env: [" + manyEnv() + "]",
	"when":             "steps:\n- cmd: img\n  when: [" + strings.Repeat("x,", maxNodes-100) + "]",
	"block scalars":    strings.Repeat("- |\n x\n", maxSource/8),
	"too big":          strings.Repeat(" ", maxSource+1),
	"long ID":          "steps:\n- cmd: img\n  id: &id " + strings.Repeat("x", 500_000) + "\n  when: [" + strings.Repeat("*id ,", 10_000) + "]",
	"many files":       "version: v1.1.0\nalias:\n  src: [" + strings.Repeat("a,", 10_000) + "]\n",
	"many secrets":     "secrets: [" + strings.Repeat("{id: a, keyvault: https://a.b/secrets/c},", 5_000) + "]\n",
	"long name":        "steps:\n- cmd: img $" + strings.Repeat("x", 900_000),
	"long key":         "steps:\n- cmd: img\n  " + strings.Repeat("x", 900) + ": y\n",
	"shell variables":  "steps:\n- cmd: img " + manyVariables(),
	"wrong when":       wrongWhen(),
	"wrong mounts":     wrongMounts(),
	"not UTF-8":        "steps:\n- cmd: \xff",
	"control":          "steps:\n- cmd: \x00",
}

func manyKeys(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "k%06d: v\n", i)
	}
	return b.String()[:min(b.Len(), maxSource)]
}

func deepMaps(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%*sa:\n", i, "")
	}
	return b.String()
}

func laughs() string {
	var b strings.Builder
	b.WriteString("a0: &a0 [x,x]\n")
	for i := 1; i < 40; i++ {
		fmt.Fprintf(&b, "a%d: &a%d [*a%d,*a%d,*a%d]\n", i, i, i-1, i-1, i-1)
	}
	b.WriteString("steps: *a39\n")
	return b.String()
}

func mergeBomb() string {
	var b strings.Builder
	b.WriteString("a0: &a0 {x: y}\n")
	for i := 1; i < 10; i++ {
		fmt.Fprintf(&b, "a%d: &a%d {<<: [%s*a%d]}\n", i, i, strings.Repeat(fmt.Sprintf("*a%d,", i-1), 99), i-1)
	}
	b.WriteString("steps: [{<<: *a9, cmd: img}]\n")
	return b.String()
}

func lateDicts() string {
	var b strings.Builder
	for i := range 50 {
		fmt.Fprintf(&b, "{{$d%d := dict}}", i)
	}
	for i := range 49 {
		fmt.Fprintf(&b, `{{$_ := set $d%d "k" (list $d%d $d%d)}}`, i, i+1, i+1)
	}
	b.WriteString("{{$d0}}")
	return b.String()
}

func manyVariables() string {
	var b strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&b, "$v%d ", i)
	}
	return b.String()
}

func wrongWhen() string {
	var b strings.Builder
	b.WriteString("steps:\n- {cmd: img, when: &w [" + strings.Repeat("stepping,", 5000) + "]}\n")
	for i := range 999 {
		fmt.Fprintf(&b, "- {id: stepping%d, cmd: img, when: *w}\n", i)
	}
	return b.String()
}

func wrongMounts() string {
	var b strings.Builder
	b.WriteString("volumes:\n")
	for i := range maxVolumes {
		fmt.Fprintf(&b, "- {name: volume%d, secret: {a: YQ==}}\n", i)
	}
	b.WriteString("steps:\n- cmd: img\n  volumeMounts:\n" + strings.Repeat("  - {name: volume, mountPath: /a}\n", 10_000))
	return b.String()
}

func manyEnv() string {
	var b strings.Builder
	for i := range 90_000 {
		fmt.Fprintf(&b, "A%d=1,", i)
	}
	return b.String()
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
