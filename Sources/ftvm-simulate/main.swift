import Simulator

SimulateCommand.main()
