package dockerfile

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// format writes bases down, the runtime one first.
func format(b Bases) string {
	var out strings.Builder
	line := func(kind string, b Base) {
		fmt.Fprintf(&out, "%s %d %s: ", kind, b.Line, b.Use)
		if b.Ref == "" {
			fmt.Fprintf(&out, "%s: %s", b.Written, b.Unresolved)
		} else {
			out.WriteString(b.Ref)
		}
		if b.Platform != "" {
			out.WriteString(" " + b.Platform)
		}
		out.WriteByte('\n')
	}
	if b.Runtime != nil {
		line("run", *b.Runtime)
	}
	for _, x := range b.Buildtime {
		line("build", x)
	}
	return out.String()
}

func TestScan(t *testing.T) {
	for _, tc := range []struct {
		name, dockerfile string
		opt              Options
		want             string
	}{{
		name:       "single stage",
		dockerfile: "FROM alpine\n",
		want:       "run 1 FROM: docker.io/library/alpine:latest\n",
	}, {
		name:       "build stage is build time",
		dockerfile: "FROM golang:1.26 AS build\nRUN go build\nFROM gcr.io/x/static@sha256:" + strings.Repeat("0", 64) + "\nCOPY --from=build /a /a\n",
		want:       "run 3 FROM: gcr.io/x/static@sha256:" + strings.Repeat("0", 64) + "\nbuild 1 FROM: docker.io/library/golang:1.26\n",
	}, {
		name:       "derived stages share their origin",
		dockerfile: "FROM a:1 AS base\nFROM base AS mid\nFROM mid\nCOPY --from=base / /\n",
		want:       "run 1 FROM: docker.io/library/a:1\n",
	}, {
		name:       "unused stages do not count",
		dockerfile: "FROM a AS unused\nFROM b AS used\nFROM c\nCOPY --from=used x y\n",
		want:       "run 3 FROM: docker.io/library/c:latest\nbuild 2 FROM: docker.io/library/b:latest\n",
	}, {
		name:       "target",
		dockerfile: "FROM a AS One\nFROM b AS two\nFROM c\n",
		opt:        Options{Target: "ONE"},
		want:       "run 1 FROM: docker.io/library/a:latest\n",
	}, {
		name:       "argument default",
		dockerfile: "ARG V=1.2\nARG IMG=reg.example.com:5000/base:$V\nFROM ${IMG}\n",
		want:       "run 3 FROM: reg.example.com:5000/base:1.2\n",
	}, {
		name:       "build argument wins",
		dockerfile: "ARG V=1.2\nFROM a:$V\n",
		opt:        Options{BuildArgs: map[string]string{"V": "2"}},
		want:       "run 2 FROM: docker.io/library/a:2\n",
	}, {
		name:       "build argument that is not declared",
		dockerfile: "FROM a:${V:-3}\n",
		opt:        Options{BuildArgs: map[string]string{"V": "2"}},
		want:       "run 1 FROM: docker.io/library/a:3\n",
	}, {
		name:       "argument without value",
		dockerfile: "ARG BASE\nFROM $BASE\n",
		want:       "run 2 FROM: $BASE: no value for BASE\n",
	}, {
		name:       "tag without value",
		dockerfile: "ARG TAG\nFROM a:$TAG\n",
		want:       "run 2 FROM: a:$TAG: no value for TAG\n",
	}, {
		name:       "scratch has no base",
		dockerfile: "FROM golang AS build\nFROM scratch\nCOPY --from=build /a /a\n",
		want:       "build 1 FROM: docker.io/library/golang:latest\n",
	}, {
		name:       "copy and mounts",
		dockerfile: "FROM a\nCOPY --from=b:1 x y\nRUN --mount=type=bind,from=c,target=/c --mount=type=cache,target=/d true\nCOPY --from=b:1 z z\n",
		want:       "run 1 FROM: docker.io/library/a:latest\nbuild 2 COPY --from: docker.io/library/b:1\nbuild 3 RUN --mount: docker.io/library/c:latest\n",
	}, {
		name:       "copy from stage number",
		dockerfile: "FROM a\nFROM b\nCOPY --from=0 x y\n",
		want:       "run 2 FROM: docker.io/library/b:latest\nbuild 1 FROM: docker.io/library/a:latest\n",
	}, {
		name:       "copy from a variable",
		dockerfile: "ARG X=b\nFROM a\nCOPY --from=$X x y\n",
		want:       "run 2 FROM: docker.io/library/a:latest\nbuild 3 COPY --from: $X: variables are not expanded here; name the image in a FROM of its own\n",
	}, {
		name:       "syntax directive",
		dockerfile: "# syntax=docker/dockerfile:1\nFROM a\n",
		want:       "run 2 FROM: docker.io/library/a:latest\nbuild 1 # syntax: docker.io/docker/dockerfile:1\n",
	}, {
		name:       "platform",
		dockerfile: "FROM --platform=$BUILDPLATFORM golang AS build\nFROM --platform=arm64 a\nCOPY --from=build x y\n",
		opt:        Options{Platform: "linux/arm/v7"},
		want:       "run 2 FROM: docker.io/library/a:latest linux/arm64\nbuild 1 FROM: docker.io/library/golang:latest linux/arm/v7\n",
	}, {
		name:       "heredoc and continuation are content",
		dockerfile: "FROM a \\\n AS x\nRUN <<EOF\nFROM nothing\nEOF\nRUN echo \\\n FROM b\n",
		want:       "run 1 FROM: docker.io/library/a:latest\n",
	}, {
		name:       "escape directive",
		dockerfile: "# escape=`\nFROM a `\n  AS b\n",
		want:       "run 2 FROM: docker.io/library/a:latest\n",
	}, {
		name:       "named contexts",
		dockerfile: "FROM base\nCOPY --from=files x y\nCOPY --from=tools x y\n",
		opt:        Options{Contexts: map[string]string{"base": "docker-image://reg.example.com/b:2", "files": "./dir", "tools": "docker-image://t"}},
		want:       "run 1 FROM: reg.example.com/b:2\nbuild 3 COPY --from: docker.io/library/t:latest\n",
	}, {
		name:       "registries with a port or without a dot",
		dockerfile: "FROM localhost:5000/a\nFROM registry:5000/b\nCOPY --from=0 x y\nCOPY --from=user/c x y\n",
		want:       "run 2 FROM: registry:5000/b:latest\nbuild 1 FROM: localhost:5000/a:latest\nbuild 4 COPY --from: docker.io/user/c:latest\n",
	}, {
		name:       "stage names in other cases",
		dockerfile: "FROM a AS Build\nFROM b\nCOPY --from=BUILD x y\n",
		want:       "run 2 FROM: docker.io/library/b:latest\nbuild 1 FROM: docker.io/library/a:latest\n",
	}, {
		name:       "environment of a stage is no argument",
		dockerfile: "FROM a\nENV X=b\nFROM $X\n",
		want:       "run 3 FROM: $X: no value for X\n",
	}, {
		name:       "argument of a stage is not global",
		dockerfile: "FROM a\nARG X=b\nFROM $X\n",
		want:       "run 3 FROM: $X: no value for X\n",
	}, {
		name:       "first of two defaults is replaced by the last",
		dockerfile: "ARG X=a\nARG X=b\nFROM $X\n",
		want:       "run 3 FROM: docker.io/library/b:latest\n",
	}, {
		name:       "quoted name and comments between lines",
		dockerfile: "# FROM nothing\n\nFROM \\\n# comment\n  'a:1'\n",
		want:       "run 3 FROM: docker.io/library/a:1\n",
	}, {
		name:       "predefined platform arguments",
		dockerfile: "FROM a-$TARGETARCH AS x\nFROM b-${BUILDOS}\n",
		opt:        Options{Platform: "linux/arm64"},
		want:       "run 2 FROM: docker.io/library/b-linux:latest\n",
	}, {
		name:       "copies between several stages",
		dockerfile: "FROM a AS x\nFROM b AS y\nCOPY --from=x 1 2\nFROM scratch\nCOPY --from=y 1 2\n",
		want:       "build 1 FROM: docker.io/library/a:latest\nbuild 2 FROM: docker.io/library/b:latest\n",
	}, {
		name:       "invalid reference",
		dockerfile: "FROM Not/Valid\n",
		want:       "run 1 FROM: Not/Valid: \"Not/Valid\" is no image reference\n",
	}, {
		name:       "stages that copy from each other",
		dockerfile: "FROM a AS x\nCOPY --from=y 1 2\nFROM b AS y\nCOPY --from=x 1 2\n",
		want:       "run 3 FROM: docker.io/library/b:latest\nbuild 1 FROM: docker.io/library/a:latest\n",
	}, {
		name:       "byte order mark and carriage returns",
		dockerfile: "\ufeffARG A=b\r\nFROM $A\r\n",
		want:       "run 2 FROM: docker.io/library/b:latest\n",
	}} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := Scan([]byte(tc.dockerfile), tc.opt)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, format(got)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestScanRefusesWhatCannotBeBuilt(t *testing.T) {
	for _, tc := range []struct {
		name, dockerfile string
		opt              Options
		want             string
	}{
		{"empty", "", Options{}, "file with no instructions"},
		{"no stage", "ARG A=1\n", Options{}, "the Dockerfile has no FROM"},
		{"unknown instruction", "FROM a\nFRMO b\n", Options{}, "dockerfile parse error on line 2: unknown instruction: FRMO"},
		{"unknown target", "FROM a AS x\n", Options{Target: "y"}, `the Dockerfile has no stage "y"; its stages are x`},
		{"too large", strings.Repeat("#", maxSize+1), Options{}, "the Dockerfile has 1048577 bytes, more than 1048576"},
		{"target by number", "FROM a\nFROM b\n", Options{Target: "0"}, `the Dockerfile has no stage "0"; its stages are not named`},
		{"bad platform", "FROM a\n", Options{Platform: "a/b/c/d"}, `platform "a/b/c/d"`},
		{"open heredoc", "FROM a\nRUN <<EOF\n", Options{}, "line 2: unterminated heredoc"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if _, err := Scan([]byte(tc.dockerfile), tc.opt); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Scan = %v, want %q", err, tc.want)
			}
		})
	}
}

// FuzzScan checks that Scan never panics and resolves a base or says why not.
func FuzzScan(f *testing.F) {
	f.Add("ARG A=b\nFROM $A AS x\nFROM x\nCOPY --from=y:1 a b\nRUN --mount=from=z true\n")
	f.Add("# syntax=a/b\nFROM --platform=$BUILDPLATFORM scratch\n")
	f.Fuzz(func(t *testing.T, src string) {
		bases, err := Scan([]byte(src), Options{})
		if err != nil {
			return
		}
		all := bases.Buildtime
		if bases.Runtime != nil {
			all = append(all, *bases.Runtime)
		}
		for _, b := range all {
			if (b.Ref == "") == (b.Unresolved == "") {
				t.Errorf("%+v is neither resolved nor unresolved", b)
			}
		}
	})
}

func BenchmarkScan(b *testing.B) {
	src := []byte("# syntax=docker/dockerfile:1\nARG V=1\nFROM golang:$V AS build\nWORKDIR /src\nCOPY . .\nRUN --mount=type=cache,target=/root/.cache go build -o /out ./...\nFROM gcr.io/distroless/static\nCOPY --from=build /out /\nENTRYPOINT [\"/out\"]\n")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Scan(src, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
