package main

import "github.com/spf13/cobra"

func (a *app) tour() *cobra.Command  { return &cobra.Command{Use: "tour"} }
func (a *app) bench() *cobra.Command { return &cobra.Command{Use: "bench"} }
