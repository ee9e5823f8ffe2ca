package taskspec

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
)

func TestHostileDocumentsAreCheap(t *testing.T) {
	for name, src := range hostile {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, warns, err := Parse([]byte(src), testOptions())
		runtime.ReadMemStats(&after)
		if err != nil && !errors.As(err, new(Errors)) {
			t.Errorf("%s: %T", name, err)
		}
		if len(warns) > maxErrors {
			t.Errorf("%s: %d warnings", name, len(warns))
		}
		if mem := after.TotalAlloc - before.TotalAlloc; mem > 64<<20 {
			t.Errorf("%s: %d MiB were allocated, want at most 64", name, mem>>20)
		}
	}
}

// hostile are documents that try to cost more than their size.
var hostile = map[string]string{
	"long list":        "steps:\n" + strings.Repeat("- a\n", hostileSize/4-10),
	"many keys":        strings.Repeat("a: b\n", hostileSize/5),
	"distinct keys":    manyKeys(hostileSize / 10),
	"flow list":        "steps: [" + strings.Repeat("a,", hostileSize/2-10) + "]",
	"flow maps":        "steps: [" + strings.Repeat("{},", hostileSize/3-10) + "]",
	"deep flow":        strings.Repeat("[", hostileSize),
	"deep list":        strings.Repeat("- ", hostileSize/2),
	"deep maps":        deepMaps(1400),
	"question marks":   strings.Repeat("? ", hostileSize/2),
	"open quote":       `a: "` + strings.Repeat("x\n", hostileSize/2-10),
	"comments":         strings.Repeat("a: b #\n", hostileSize/7),
	"comment lines":    strings.Repeat("#\n", hostileSize/2),
	"colons":           strings.Repeat(":", hostileSize),
	"anchors":          strings.Repeat("- &a b\n", hostileSize/7),
	"billion laughs":   laughs(),
	"merge bomb":       mergeBomb(),
	"aliases":          "version: v1.1.0\nalias:\n  values:\n    a: " + strings.Repeat("x", hostileSize/10) + "\nsteps:\n" + strings.Repeat("- cmd: $a\n", hostileSize/20),
	"dollars":          "version: v1.1.0\nsteps:\n" + strings.Repeat("$", hostileSize-100),
	"unknown aliases":  "version: v1.1.0\nsteps:\n" + strings.Repeat("$x", hostileSize/2-100),
	"actions":          strings.Repeat("{{.a}}", hostileSize/6),
	"parentheses":      "{{" + strings.Repeat("(", hostileSize-10) + "}}",
	"nested loops":     "{{range until 1000}}{{range until 1000}}x{{end}}{{end}}",
	"empty loop":       "{{range 1000000000}}{{end}}",
	"recursion":        `{{define "a"}}{{template "a"}}{{end}}{{template "a"}}`,
	"self recursion":   `{{template "task"}}`,
	"doubling":         `{{$x := "xxxxxxxx"}}{{range until 60}}{{$x = print $x $x}}{{end}}`,
	"replace":          `{{replace "" "` + strings.Repeat("x", hostileSize*2/5) + `" "` + strings.Repeat("y", hostileSize*2/5) + `"}}`,
	"wide printf":      `{{printf "%999999999d" 1}}`,
	"printf arguments": `{{$s := repeat 100000 "x"}}{{printf "` + strings.Repeat("%[1]s", 100_000) + `" $s}}`,
	"regular program":  `{{regexMatch "` + strings.Repeat("a{999}", 170) + `" "x"}}`,
	"regular text":     `{{regexMatch "(x+x+)+y" (repeat 500000 "x")}}`,
	"shared lists":     `{{$x := list 1 2}}{{range until 60}}{{$x = list $x $x}}{{end}}{{$x}}`,
	"mutual dicts":     `{{$a := dict}}{{$b := dict "a" $a}}{{$_ := set $a "b" $b}}{{$a}}`,
	"late dicts":       lateDicts(),
	"indent":           `{{indent 2000000000 "x"}}`,
	"negative repeat":  `{{repeat -1 "x"}}`,
	"until step":       `{{untilStep 0 2000000000 1}}`,
	"seq":              `{{seq 1 2000000000}}`,
	"uniq":             `{{uniq (until 100000)}}`,
	"words":            "steps:\n- cmd: " + strings.Repeat("a ", hostileSize/2-100),
	"flags":            "steps:\n- build: " + strings.Repeat("-t a ", hostileSize/5-100),
	"bad flags":        "steps:\n- cmd: " + strings.Repeat("-v a ", hostileSize/5-100) + "img",
	"env":              "steps:\n- cmd: img\n  env: [" + manyEnv() + "]",
	"when":             "steps:\n- cmd: img\n  when: [" + strings.Repeat("x,", hostileSize/20) + "]",
	"block scalars":    strings.Repeat("- |\n x\n", hostileSize/8),
	"too big":          strings.Repeat(" ", maxSource+1),
	"long ID":          "steps:\n- cmd: img\n  id: &id " + strings.Repeat("x", hostileSize/2) + "\n  when: [" + strings.Repeat("*id ,", hostileSize/100) + "]",
	"many files":       "version: v1.1.0\nalias:\n  src: [" + strings.Repeat("a,", 10_000) + "]\n",
	"many secrets":     "secrets: [" + strings.Repeat("{id: a, keyvault: https://a.b/secrets/c},", 5_000) + "]\n",
	"long name":        "steps:\n- cmd: img $" + strings.Repeat("x", hostileSize*9/10),
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
	return b.String()[:min(b.Len(), hostileSize)]
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
	for i := range hostileSize / 10 {
		fmt.Fprintf(&b, "$v%d ", i)
	}
	return b.String()
}

func wrongWhen() string {
	var b strings.Builder
	b.WriteString("steps:\n- {cmd: img, when: &w [" + strings.Repeat("stepping,", hostileSize/200) + "]}\n")
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
	b.WriteString("steps:\n- cmd: img\n  volumeMounts:\n" + strings.Repeat("  - {name: volume, mountPath: /a}\n", hostileSize/100))
	return b.String()
}

func manyEnv() string {
	var b strings.Builder
	for i := range hostileSize / 20 {
		fmt.Fprintf(&b, "A%d=1,", i)
	}
	return b.String()
}
