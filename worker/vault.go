package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kiln/internal/secret"
	"kiln/taskspec"
)

// vaultTimeout is how long a provider may take to answer for one secret.
const vaultTimeout = 30 * time.Second

// planOptions are those of the attempt's own plan.
func (a *attempt) planOptions(ctx context.Context) PlanOptions {
	opt := PlanOptions{Registry: a.w.Registry, Secrets: a.secrets.Set, Images: a.w.Images, Privileged: a.w.Privileged,
		Vault: func(s taskspec.Secret) (string, error) { return a.vault(ctx, s) }}
	if a.src != nil {
		opt.AliasFile = func(name string) ([]byte, error) { return a.aliasFile(ctx, name) }
	}
	return opt
}

// vault returns the value of a secret that the task file names. From then on it is masked.
func (a *attempt) vault(ctx context.Context, s taskspec.Secret) (string, error) {
	if a.run.Spec.Restricted {
		return "", errors.New("a pull request from outside of the repository is given no secrets")
	}
	if err := limitVault(a.run.Spec.Limits, s.KeyVault); err != nil {
		return "", err
	}
	if a.w.Vault == nil {
		return "", errors.New("this worker has no vaults")
	}
	ctx, cancel := context.WithTimeout(ctx, vaultTimeout)
	defer cancel()
	value, err := a.w.Vault(ctx, s.KeyVault)
	if err != nil {
		if !errors.Is(err, secret.ErrUnknown) && ctx.Err() != nil {
			return "", fmt.Errorf("%s: no answer: %w", s.KeyVault, context.Cause(ctx))
		}
		return "", err
	}
	a.vaulted = append(a.vaulted, value)
	a.logs.hide(value)
	return value, nil
}
