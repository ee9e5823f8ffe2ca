//go:build soak

package registry_test

import "testing"

func TestSoakRandomOperations(t *testing.T) {
	for seed := range uint64(50) {
		runModel(t, 100+seed, 1000, 5)
	}
}
