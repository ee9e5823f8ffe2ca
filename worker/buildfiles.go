package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"kiln/internal/run"
	"kiln/internal/solve"
	"kiln/taskspec"
)

// buildFiles writes what --iidfile and --metadata-file of a build ask for. Relative names begin in dir.
func (a *attempt) buildFiles(ctx context.Context, b *taskspec.Build, dir string, out run.Output) error {
	if b.IIDFile != "" {
		if err := a.buildFile(ctx, "--iidfile", dir, b.IIDFile, []byte(out.Digest)); err != nil {
			return err
		}
	}
	if b.MetadataFile == "" {
		return nil
	}
	text, err := a.buildMetadata(ctx, out)
	if err != nil {
		return fmt.Errorf("--metadata-file: %w", err)
	}
	return a.buildFile(ctx, "--metadata-file", dir, b.MetadataFile, text)
}

func (a *attempt) buildFile(ctx context.Context, option, dir, file string, content []byte) error {
	name := file
	if !path.IsAbs(name) {
		name = path.Join(dir, name)
	}
	if name = path.Clean(name); !within(name, workspace) {
		return &solve.StepError{ExitCode: -1, Message: fmt.Sprintf("%s %s is not in %s, where alone a build can write", option, clip(file, 200), workspace)}
	}
	a.wrote.Store(true)
	return a.session.WriteFile(ctx, strings.TrimPrefix(name, workspace+"/"), content)
}

// A buildMetadata is what docker says of a build.
type buildMetadata struct {
	Config     string        `json:"containerimage.config.digest,omitempty"` // of an image of one platform
	Descriptor v1.Descriptor `json:"containerimage.descriptor"`
	Digest     string        `json:"containerimage.digest"`
	Name       string        `json:"image.name,omitempty"`
}

func (a *attempt) buildMetadata(ctx context.Context, out run.Output) ([]byte, error) {
	found, err := a.fetch(ctx, out.Ref)
	if err != nil {
		return nil, err
	}
	m := buildMetadata{Descriptor: found.Descriptor, Digest: out.Digest, Name: strings.Join(out.Tags, ",")}
	if found.MediaType.IsImage() {
		img, err := found.Image()
		if err != nil {
			return nil, err
		}
		config, err := img.ConfigName()
		if err != nil {
			return nil, err
		}
		m.Config = config.String()
	}
	return json.MarshalIndent(m, "", "  ")
}
